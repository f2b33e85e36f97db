"""Route safety: whenever an LLM endpoint of the app runs, our layer has seen the request before. No exception.

Each path variant goes through each framework as a raw ASGI scope and, byte for byte, through real servers. Most
variants end in a 404 or a redirect; those that reach an endpoint must have been guarded on the way.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
import uvicorn

from tests.interop.apps import routes_app
from tests.interop.apps.routes_app import APPS, BARE, CHAT, HITS, INSIDE, PREFIXED, Guard, guarded
from tianji_mw import Authentication, Gateway
from tianji_mw.routing.table import Deployments
from tianji_mw.testing import drive

BODY = b'{"model":"m","messages":[{"role":"user","content":"x"}],"input":"x"}'
PLACES = [(name, inside) for name in APPS for inside in ((False, True) if name in INSIDE else (False,))]
#: Each base path must be reached at least this often, or the table tests nothing.
LEAST = 3


def variants(base: str) -> Iterator[str]:
    """Request targets that some framework, server or proxy might take for `base`."""
    head, _, tail = base.rpartition("/")
    letter = f"%{ord(tail[0]):02x}{tail[1:]}"
    yield from (base, base + "/", base + "//", "/" + base, "//" + base, base.replace("/", "//"), f"{head}//{tail}")
    yield from (f"{head}%2f{tail}", base.replace("/", "%2F"), f"{head}%252f{tail}", "/%2f" + base[1:], "%2f" + base[1:])
    yield from (f"{head}/{letter}", f"{head}/{letter.replace('%', '%25')}", base.upper(), f"{head}/{tail.title()}")
    yield from (base + ";x", base + ";x=1/", base + ";/", "/..;" + base, f"{head};x/{tail}", base + "%3bx")
    yield from ("/." + base, f"{head}/./{tail}", "/x/.." + base, "/.." + base, "/%2e" + base, "/x/%2e%2e" + base)
    yield from (base + "/.", base + "/..", base + "/x/..", base + "/%2e", f"{head}/x/../{tail}", "/x/%252e%252e" + base)
    yield from (base + "%0a", base + "%0d%0a", base + "%20", "/%20" + base, base + "%00", base + "%09", base + "%")
    yield from (base + "%3fx", base + "%3fa/b", base + "%23x", base + "#x", base + "?x=/y", base + "?/../z", base + "?")
    yield from ("http://host" + base, "HTTP://host:80" + base, "http://host/" + base, "ws://host" + base, "x:" + base)
    yield from ("http://host" + base + "%3fa/b", "http://host" + base + "%3bx", "http://host" + base + "%23a/b")
    yield from ("a-scheme-longer-than-others://host" + base, "http:" + base[1:], base[1:], "%09" + base, "%0a" + base)
    yield from ("//host" + base, "///host" + base, "http://[" + base, "http://a@b:c" + base, "*" + base)
    yield from (base.replace("/", "\\"), f"{head}\\{tail}", f"{head}%5c{tail}", "/x\\.." + base, "\\" + base[1:])
    yield from (f"{head}%c0%af{tail}", f"{head}%e0%80%af{tail}", f"{head}%ef%bc%8f{tail}", f"{head}/%c1%a3{tail[1:]}")


def rooted(base: str, root: str) -> Iterator[str]:
    """The same below a root path, beside it, and where a framework would cut it out."""
    for path in (base, "/" + base, base + "/", base.upper(), base + "%0a"):
        yield from (root + path, root + "/" + path, root + path[1:], path, "/x" + root + path, "/x" + root + path[1:])
    yield from (
        root.upper() + base,
        root + "/.." + base,
        root + root + base,
        "/." + root + base,
        "http://host" + root + base,
    )
    yield from (f"x{root}{base}", f"{root}%2f{base[1:]}", "/" + root + base)


async def ask(app: Any, target: str, *, root: str = "", method: str = "POST", **headers: str) -> None:
    """One request with this target as uvicorn would describe it."""
    raw, _, query = target.partition("?")
    scope = {"path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": root}
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    await drive(app, BODY, method=method, scope=scope, headers={"host": "host", **own})


def verdict(reached: dict[str, int], label: str) -> None:
    """Take the hits of one request; fail on one that nobody guarded."""
    for name, was_guarded in HITS:
        assert was_guarded, f"{label} reached {name} unguarded"
        reached[name] = reached.get(name, 0) + 1
    HITS.clear()


@pytest.mark.parametrize(("framework", "inside"), PLACES)
async def test_no_variant_reaches_an_endpoint_unguarded(framework: str, inside: bool) -> None:
    app, reached = guarded(framework, inside), dict[str, int]()
    for base in (CHAT, PREFIXED, BARE):
        for target in variants(base):
            await ask(app, target)
            verdict(reached, f"{framework}: {target!r}")
    assert all(reached[base] >= LEAST for base in (CHAT, PREFIXED, BARE)), reached


@pytest.mark.parametrize("root", ["/root", "/Ro;ot", "/a/b", "/%2e", "/root/"])
@pytest.mark.parametrize(("framework", "inside"), PLACES)
async def test_no_root_path_hides_an_endpoint(framework: str, inside: bool, root: str) -> None:
    app, reached = guarded(framework, inside), dict[str, int]()
    for base in (CHAT, PREFIXED, BARE):
        for target in rooted(base, root):
            await ask(app, target, root=unquote(root))
            verdict(reached, f"{framework}, root path {root}: {target!r}")
    assert sum(reached.values()) >= LEAST, reached


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("root", ["/root", "/Root/v2/", "/a;b"])
async def test_the_root_path_of_fastapi_hides_no_endpoint(root: str, inside: bool) -> None:
    app, reached = routes_app.fastapi(inside=inside, root_path=root), dict[str, int]()
    app = app if inside else Guard(app)
    for base in (CHAT, PREFIXED, BARE):
        for target in rooted(base, root.rstrip("/")):
            for given in ("", "/other"):
                await ask(app, target, root=given)
                verdict(reached, f"FastAPI(root_path={root!r}): {target!r}")
    assert all(reached[base] >= LEAST for base in (CHAT, PREFIXED, BARE)), reached


@pytest.mark.parametrize("framework", ["starlette", "fastapi", "quart", "django"])
async def test_no_mount_hides_an_endpoint(framework: str) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = guarded(framework)
    app = Starlette(routes=[Mount("/mnt", inner), Mount("/t/{tenant}", inner), Mount("/Mixed.Case", inner)])
    reached = dict[str, int]()
    for base in (CHAT, PREFIXED, BARE):
        for mount in ("/mnt", "/t/acme", "/t/..", "/t/%2e", "/t/a;b", "/t/%20", "/t/a%252fb", "/t/%3f", "/Mixed.Case"):
            for target in rooted(base, mount):
                await ask(app, target)
                verdict(reached, f"{framework} below {mount}: {target!r}")
    assert all(reached[base] >= LEAST for base in (CHAT, PREFIXED, BARE)), reached


@pytest.mark.parametrize(("framework", "inside"), PLACES)
async def test_no_method_with_a_body_gets_around_the_layer(framework: str, inside: bool) -> None:
    app, reached = guarded(framework, inside), dict[str, int]()
    for base in (CHAT, PREFIXED, BARE):
        for method in ("POST", "post", "Post", "PUT", "PATCH", "GET", "get", "DELETE", "OPTIONS", "HEAD", "QUERY", "X"):
            await ask(app, base, method=method)
            verdict(reached, f"{framework}: {method} {base}")
        await ask(app, base, method="GET", content_length="0", x_http_method_override="POST")
        verdict(reached, f"{framework}: override {base}")
    assert all(reached[base] >= LEAST for base in (CHAT, PREFIXED, BARE)), reached


@pytest.mark.slow
@pytest.mark.parametrize("root", ["", "/root"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(("framework", "inside"), PLACES)
async def test_no_bytes_on_the_wire_get_around_the_layer(framework: str, inside: bool, http: str, root: str) -> None:
    reached = dict[str, int]()
    config = uvicorn.Config(
        guarded(framework, inside), port=0, http=http, root_path=root, log_config=None, lifespan="off"  # type: ignore[arg-type]
    )  # fmt: skip
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        for base in (CHAT, PREFIXED, BARE):
            for target in (*variants(base), *(rooted(base, root) if root else ())):
                for method in ("POST", "get") if target == base else ("POST",):
                    await on_the_wire(port, method, target)
                    verdict(reached, f"{framework} on uvicorn/{http}, root path {root!r}: {method} {target!r}")
    finally:
        server.should_exit = True
        await running
    assert all(reached[base] >= LEAST for base in (CHAT, PREFIXED, BARE)), reached


async def on_the_wire(port: int, method: str, target: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {target} HTTP/1.1\r\nhost: host\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An app that does nothing, to count what stands before it."""


def layers(count: int) -> Any:
    app: Any = nothing
    for _ in range(count):
        app = Guard(app)
    return app


@pytest.mark.parametrize("path", ["/healthz", "/static/app-3f.js", "/api/users/42"])
def test_a_foreign_request_costs_two_calls_per_layer(path: str) -> None:
    app, count = layers(10), 0
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        # Ours only: a collector's callback may run at any moment.
        count += event == "call" and "tianji_mw" in frame.f_code.co_filename

    warm_up = app(dict(scope), None, None)
    with pytest.raises(StopIteration):
        warm_up.send(None)
    run = app(scope, None, None)
    sys.setprofile(profile)
    try:
        run.send(None)
    except StopIteration:
        pass
    finally:
        sys.setprofile(None)
    # Per layer `__call__` and `match`; once the look at the path.
    assert 20 <= count <= 10 * 2 + 2


@pytest.mark.parametrize("scope_type", ["websocket", "http", "something.new"])
async def test_foreign_scopes_pass_untouched(scope_type: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope = {"type": scope_type, "method": "GET", "path": "/healthz" if scope_type == "http" else CHAT, "headers": []}
    before = dict(scope)

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    await Guard(Guard(app))(scope, receive, send)
    assert seen[0][0] is scope
    assert seen[0][1] is receive
    assert seen[0][2] is send
    assert {key: scope[key] for key in before} == before
    assert set(scope) - set(before) <= {"tianji_mw.route"}


@pytest.mark.parametrize(("method", "path"), [("PUT", CHAT), ("POST", "/v1/models"), ("PATCH", "/v1/files")])
async def test_the_gateway_refuses_other_methods(method: str, path: str) -> None:
    driven = await drive(Gateway(Deployments([])), BODY, method=method, path=path)
    assert driven.status == 405
    assert driven.headers["allow"]
    assert driven.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
@pytest.mark.parametrize("how", ["around", "inside", "bare"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/v1/files"),
        ("POST", "/images/generations"),
        ("DELETE", "/files/f"),
    ],
)
async def test_authentication_covers_what_a_gateway_inside_serves(
    framework: str, how: str, method: str, path: str
) -> None:
    gateway = Gateway(Deployments([]))
    app = APPS[framework]()
    if how == "inside":
        app.add_middleware(Authentication, master_key="sk-1")
    app.mount("/llm", gateway)
    if how != "inside":
        app = Authentication(app if how == "around" else gateway, master_key="sk-1")
    target = path if how == "bare" else f"/llm{path}"
    assert (await drive(app, BODY, method=method, path=target)).status == 401
    known = await drive(app, BODY, method=method, path=target, headers={"authorization": "Bearer sk-1"})
    assert known.status in (200, 404)
    assert (await drive(app, method="GET", path="/healthz")).status == 404
