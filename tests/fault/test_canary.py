"""Two canaries, the provider's key and the master key, through every success and error path with all logs at DEBUG.

Neither may stand in a response, a log line, a `repr`, or a counter.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.contract.test_transports import closed_port
from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Serve, delta, deployment, guarded, stream_of
from tianji_mw.gateway import Gateway
from tianji_mw.identity.middleware import Authentication
from tianji_mw.providers.anthropic import Anthropic
from tianji_mw.providers.base import Provider
from tianji_mw.providers.openai import OpenAI
from tianji_mw.redact import Secret
from tianji_mw.routing.table import Deployments
from tianji_mw.testing import FakeLLM, Reply, drive
from tianji_mw.upstream import Deadlines

KEY = "sk-canary-provider-0123456789"
MASTER = "sk-canary-master-0123456789"
EXTRA = "canary-header-0123456789"

ECHO = {"error": {"message": f"Incorrect API key provided: {KEY}. ({EXTRA})", "type": "x", "code": "invalid_api_key"}}

REPLIES: dict[str, Reply] = {
    "ok": Reply.json(ANSWER),
    "ok, stream": Reply.events(*stream_of("Hello")),
    "echo in an error": Reply.json(ECHO, status=401),
    "echo in a 500": Reply.json(ECHO, status=500),
    "echo in a page": Reply(
        status=403, headers={"content-type": "text/html"}, parts=[f"<p>{KEY} {EXTRA}</p>".encode()]
    ),
    "echo in a 200": Reply.json(ECHO),
    "echo in the first event": Reply.events(b"data: " + Reply.json(ECHO).parts[0] + b"\n\n"),
    "echo in a header": Reply.json(ANSWER, status=429),
    "echo in garbage": Reply(garbage=f"HTTP/1.1 200 OK\r\nbad {KEY}: \x00{EXTRA}\r\n\r\n".encode()),
    "echo as a redirect": Reply(status=302, headers={"location": f"https://evil/?key={KEY}"}),
    "closed": Reply(refuse=True),
    "cut": Reply.json(ANSWER, cut_after=10),
    "cut, stream": Reply.events(*stream_of("Hello"), cut_after=150),
    "no JSON": Reply(headers={"content-type": "application/json"}, parts=[f"{{nonsense {KEY} {EXTRA}".encode()]),
    "no JSON, stream": Reply.events(delta("a"), f"data: {{nonsense {KEY}\n\n".encode()[:-30] + b"\n\n", pause_s=0.01),
    "late": Reply(delay_s=30),
}
REPLIES["echo in a header"].headers.update({"set-cookie": KEY, "x-debug": KEY, "www-authenticate": EXTRA})


def provider(kind: type[Provider], url: str) -> Provider:
    fields: dict[str, Any] = {
        "api_base": f"{url}/v1?token={KEY}" if kind is Provider else f"{url}/v1",
        "api_key": Secret(KEY),
        "extra_headers": {"x-extra": Secret(EXTRA)},
    }
    return kind(**fields)


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.mark.parametrize(
    ("name", "kind", "caller"),
    [
        *((name, kind, "right key") for name in [*REPLIES, "refused"] for kind in (OpenAI, Anthropic)),
        ("ok", OpenAI, "wrong key"),  # nothing goes out, whatever the upstream would say
    ],
)
async def test_no_canary_is_ever_seen(
    llm: FakeLLM,
    serve: Serve,
    everything_logged: pytest.LogCaptureFixture,
    name: str,
    kind: type[Provider],
    caller: str,
) -> None:
    url = f"http://127.0.0.1:{closed_port()}" if name == "refused" else llm.url
    if name in REPLIES:
        llm.replies.append(REPLIES[name])
    place = deployment(url, provider=provider(kind, url), deadlines=Deadlines(first_byte_s=0.1))
    layer = Ends(Authentication(guarded(Gateway(Deployments([place]))), master_key=MASTER), allow_order=True)
    app = await serve(layer)
    wrong = "sk-canary-wrong-0123456789"
    key = MASTER if caller == "right key" else wrong
    for body in ({**CHAT, "stream": "stream" in name or "event" in name}, STREAM)[: 1 if name == "late" else 2]:
        driven = await drive(app, body, headers={"authorization": f"Bearer {key}", "cookie": MASTER})
        if caller == "wrong key":
            assert driven.status == 401
        call = layer.ends[-1]
        shown = [
            repr(driven.messages),
            repr(driven.error),
            repr(call),
            repr(call.error),
            str(call.error),
            repr(call.deployment),
            repr(call.identity),
            repr(place),
            place.provider.model_dump_json(),
            repr(call.runtime.counts),
            repr(call.response_headers),
            everything_logged.text,
        ]
        for text in shown:
            for canary in (KEY, MASTER, EXTRA, wrong):
                assert canary not in text
    if caller == "right key" and name != "refused":
        assert KEY in repr(llm.requests[0].headers)  # it did go where it belongs
        assert llm.requests[0].headers["x-extra"] == EXTRA
        assert MASTER not in repr(llm.requests)
