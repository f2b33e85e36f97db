"""Use 4 of the suite, an ASGI app behind an httpx client: streaming both ways, endings, lifespan, backpressure."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import pytest

from tianji_mw.transport import Flavour, client

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.fixture(params=["httpx", "httpx2"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param  # type: ignore[no-any-return]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Sends back what it got, message by message."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await send({**START, "headers": [(b"x-path", scope["raw_path"]), (b"x-query", scope["query_string"])]})
    more = True
    while more:
        message = await receive()
        more = message["more_body"]
        await send(body(message["body"], more))


async def test_request_and_answer(flavour: Flavour) -> None:
    async with client(echo, flavour) as http:
        response = await http.post("/a%2fb?x=1&y=%20", content=b"hello")
        assert (response.status_code, response.content) == (200, b"hello")
        assert response.headers["x-path"].lower() == "/a%2fb"
        assert response.headers["x-query"] == "x=1&y=%20"
        assert type(http).__module__.split(".")[0] == flavour


async def test_the_newest_installed_flavour_is_the_default() -> None:
    async with client(echo) as http:
        assert type(http).__module__.startswith("httpx2")


async def test_uploads_stream(flavour: Flavour) -> None:
    got: list[bytes] = []
    read = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            message = await receive()
            got.append(message["body"])
            read.set()
            while message["more_body"]:
                message = await receive()
                got.append(message["body"])
            await send(START)
            await send(body(b"ok", False))

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.wait_for(read.wait(), 2)
        yield b"two"

    async with client(app, flavour) as http:
        assert (await http.post("/", content=parts())).text == "ok"
    assert got == [b"one", b"two", b""]


async def test_a_stream_arrives_piece_by_piece_with_backpressure(flavour: Flavour) -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        if scope["type"] == "http":
            await send(START)
            for i in range(50):
                await send(body(b"%d;" % i))
                sent += 1
            await send(body(b"", False))

    async with client(app, flavour) as http, http.stream("GET", "/") as response:
        await asyncio.sleep(0.05)
        assert sent <= 2, "a reader that does not read must hold the app back"
        pieces = []
        async for piece in response.aiter_raw():
            pieces.append(piece)
            assert sent <= len(pieces) + 2
    assert pieces == [b"%d;" % i for i in range(50)]


@pytest.mark.parametrize("waits", ["send", "receive"])
async def test_closing_early_is_a_disconnect_and_ends_the_task(flavour: Flavour, waits: str) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            await send(START)
            await receive()
            await send(body(b"first"))
            if waits == "receive":
                assert (await receive())["type"] == "http.disconnect"
            with pytest.raises(OSError, match="closed"):
                await asyncio.gather(*(send(body(b"more")) for _ in range(3)))
        finally:
            ended.set()

    async with client(app, flavour) as http:
        async with http.stream("GET", "/") as response:
            assert await anext(response.aiter_raw()) == b"first"
        await asyncio.wait_for(ended.wait(), 1)
        await asyncio.sleep(0)
        assert not http._transport._tasks


async def test_background_work_does_not_hold_the_answer(flavour: Flavour) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(START)
            await send(body(b"answer", False))
            assert (await receive())["type"] == "http.request"
            assert (await receive())["type"] == "http.disconnect"
            await go.wait()
            done.set()
            raise ValueError("a background task failed")

    async with client(app, flavour) as http:
        assert (await asyncio.wait_for(http.get("/"), 1)).text == "answer"
        go.set()
        await asyncio.wait_for(done.wait(), 1)


@pytest.mark.parametrize("after", ["nothing", "head", "part"])
async def test_a_failure_of_the_app_is_raised(flavour: Flavour, after: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if after != "nothing":
            await send(START)
        if after == "part":
            await send(body(b"first"))
        raise LookupError("broken app")

    async with client(app, flavour) as http:
        with pytest.raises(LookupError, match="broken app"):
            await http.get("/")


@pytest.mark.parametrize("how", ["no answer", "no end", "too short"])
async def test_an_answer_that_stops_short_is_an_error(flavour: Flavour, how: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if how != "no answer" and scope["type"] == "http":
            length = [(b"content-length", b"10")] if how == "too short" else []
            await send({**START, "headers": length})
            await send(body(b"half", how == "no end"))

    async with client(app, flavour) as http:
        with pytest.raises(import_module(flavour).RemoteProtocolError):
            await http.get("/")


async def test_answers_without_a_body_keep_their_length(flavour: Flavour) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({**START, "headers": [(b"content-length", b"10")]})
            await send(body(b"", False))

    async with client(app, flavour) as http:
        assert (await http.head("/")).headers["content-length"] == "10"


@pytest.mark.parametrize("where", ["head", "part"])
async def test_the_read_timeout_of_the_client_holds(flavour: Flavour, where: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if where == "part":
            await send(START)
            await send(body(b"first"))
        await asyncio.sleep(10)

    async with client(app, flavour, timeout=0.05) as http:
        with pytest.raises(import_module(flavour).ReadTimeout, match=r"0\.05 s"):
            await http.get("/")


class Living:
    """An app with a lifespan; notes what happens."""

    def __init__(self, fails: bool = False) -> None:
        self.events: list[str] = []
        self.fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            if self.fails:
                await send({"type": "lifespan.startup.failed", "message": "no database"})
                return
            scope["state"]["db"] = "open"
            self.events.append("start")
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            self.events.append("stop")
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.events.append(scope["state"]["db"])
        scope["state"]["db"] = "changed by a request"
        await send(START)
        await send(body(b"", False))


async def test_the_lifespan_runs_once_and_lends_its_state(flavour: Flavour) -> None:
    app = Living()
    async with client(app, flavour) as http:
        await asyncio.gather(http.get("/"), http.get("/"))
        assert app.events == ["start", "open", "open"]
    assert app.events[3:] == ["stop"]


async def test_a_failed_start_is_raised_with_its_reason(flavour: Flavour) -> None:
    async with client(Living(fails=True), flavour) as http:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no database"):
                await http.get("/")


async def test_closing_the_client_ends_running_answers(flavour: Flavour) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                await send(START)
                await asyncio.sleep(60)
            finally:
                ended.set()

    http = client(app, flavour)
    request = http.build_request("GET", "/")
    response = await http.send(request, stream=True)
    reading = asyncio.ensure_future(response.aread())
    await asyncio.sleep(0)
    await http._transport.aclose()
    assert ended.is_set()
    with pytest.raises(import_module(flavour).RemoteProtocolError):
        await reading
    await response.aclose()


async def test_nothing_is_left_behind(flavour: Flavour) -> None:
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with client(echo, flavour, timeout=0.01) as http:
            await http.post("/", content=b"x")
            async with http.stream("POST", "/", content=b"x"):
                pass
        gc.collect()
    assert [str(w.message) for w in caught if w.category is ResourceWarning] == []
