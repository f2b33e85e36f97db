"""The route table alone: readings of a path, roots, methods, declared routes, and the memo that layers share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tianji_mw.apis import ALL, TEXT, by_name
from tianji_mw.call import CALL_KEY
from tianji_mw.errors import ConfigError, PluginNotFound
from tianji_mw.routes import Routes, normal

BASE = Routes(TEXT)


def name(routes: Routes, path: str, method: str = "POST", root: str = "", headers: Any = ()) -> str | None:
    api = routes.match({"type": "http", "method": method, "path": path, "root_path": root, "headers": headers})
    return api.name if api else None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/any/prefix/v1/chat/completions",
        "//v1//chat///completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/v1/chat%2fcompletions",
        "/v1/chat%252Fcompletions",
        "/v1/chat%25252fcompletions",
        "/v1/%63hat/completions",
        "/V1/Chat/COMPLETIONS",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/v1/..;/v1/chat/completions",
        "/v1/chat;x=1/completions;y",
        "/v1/chat/completions\n",
        "/v1/chat/completions ",
        "\\v1\\chat\\completions",
        "/v1/chat/completions?a/b",
        "/v1/chat/completions#a/b",
        "/v1/chat/completions%3fa/b",
        "http://host/v1/chat/completions",
        "http://host/v1/chat/completions?x/y",
        "a-very-long-scheme-name://host/v1/chat/completions",
        "//host/v1/chat/completions",
    ],
)
def test_every_reading_of_a_path_is_matched(path: str) -> None:
    assert name(BASE, path) == "chat_completions"


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/embeddings", ""),
        ("/embeddings/", ""),
        ("//embeddings", ""),
        ("http://h/embeddings", ""),
        ("a-very-long-scheme-name://h/embeddings", ""),
        ("x:/embeddings", ""),
        ("http:embeddings", ""),
        ("\t/embeddings", ""),
        ("http://h/embeddings?x/y", ""),
        ("/api/embeddings", "/api"),
        ("/embeddings", "/api"),
        ("/API/embeddings", "/API"),
        ("/t/a;x/embeddings", "/t/a;x"),
        ("/t/%2e/embeddings", "/t/%2e"),
        ("/t/../embeddings", "/t/.."),
        # Litestar cuts the root path out wherever it stands.
        ("/x/api/embeddings", "/api"),
        ("/x/apiembeddings", "/api"),
        ("/apiembeddings", "/api"),
    ],
)
def test_routes_at_the_root_hide_behind_no_root_path(path: str, root: str) -> None:
    assert name(BASE, path, root=root) == "embeddings"


@pytest.mark.parametrize(
    "path", ["/", "", "*", "/healthz", "/static/App-3.js", "/chat", "/api/messages", "/docs/embeddings", "/x/responses"]
)
def test_other_paths_are_left_alone(path: str) -> None:
    assert name(BASE, path) is None


@pytest.mark.parametrize("value", ["..", ".", ";x", " ", "a%2fb", "A B", "a?b", "%"])
def test_odd_values_of_a_path_parameter_do_not_hide_the_route(value: str) -> None:
    assert name(BASE, f"/openai/deployments/{value}/embeddings") == "embeddings"
    assert name(Routes.of(["/ask/{session}"]), f"/ask/{value}") == "chat_completions"


def test_a_root_path_of_the_wrapped_app_counts() -> None:
    app = SimpleNamespace(app=SimpleNamespace(root_path="/API/v2/"))
    routes = BASE.seen_from(app)  # type: ignore[arg-type]
    assert name(routes, "/API/v2/embeddings") == "embeddings"
    assert name(routes, "/mounted/API/v2/embeddings", root="/mounted") == "embeddings"
    assert name(routes, "/embeddings") == "embeddings"
    assert name(BASE, "/API/v2/embeddings") is None
    assert BASE.seen_from(SimpleNamespace()) is BASE  # type: ignore[arg-type]


def test_a_table_takes_in_what_is_served_inside() -> None:
    gateway = SimpleNamespace(routes=Routes(ALL))
    inner = SimpleNamespace(routes=Routes.of(["/ask"]), app=gateway)
    mounts = [SimpleNamespace(path="/llm/", app=gateway), SimpleNamespace(path="/t/{tenant}", app=inner)]
    app = SimpleNamespace(app=SimpleNamespace(routes=[SimpleNamespace(path="/health"), *mounts]))
    outer = Routes.of([]).seen_from(app)  # type: ignore[arg-type]
    assert name(outer, "/llm/v1/files", "GET") == name(outer, "/t/acme/v1/files/x/content", "GET") == "passthrough"
    assert name(outer, "/llm/models/gpt", "GET") == "models"
    assert name(outer, "/t/acme/ask") == "chat_completions"
    assert name(outer, "/v1/files", "GET") is None, "nobody serves it there"
    assert name(Routes(TEXT).seen_from(app), "/llm/v1/files", "GET") is None  # type: ignore[arg-type]
    assert name(Routes.of([]).seen_from(SimpleNamespace(app=gateway)), "/v1/files", "GET") == "passthrough"  # type: ignore[arg-type]


def test_mounts_made_before_the_first_request_count() -> None:
    app = SimpleNamespace(routes=[])
    outer = Routes.of([]).seen_from(app)  # type: ignore[arg-type]
    app.routes.append(SimpleNamespace(path="/late", app=SimpleNamespace(routes=Routes(ALL))))
    assert name(outer, "/late/v1/files", "GET") == "passthrough"


def test_a_mount_in_itself_ends() -> None:
    app = SimpleNamespace(routes=[])
    app.routes.append(SimpleNamespace(path="/again", app=app))
    assert name(Routes.of([]).seen_from(app), "/again/again/ask") is None  # type: ignore[arg-type]


def test_a_call_that_an_outer_layer_opened_is_one_for_all() -> None:
    scope = {"method": "POST", "path": "/ask", "headers": [], CALL_KEY: SimpleNamespace(api=by_name("messages"))}
    assert Routes.of([]).match(dict(scope)) is by_name("messages")
    assert BASE.match(dict(scope)) is None, "a table that was given explicitly holds what it was given"


def test_declared_routes() -> None:
    routes = Routes.of(["/Ask", "messages:/talk/{Session-Id}", "responses:*/a/b/c/d/e/f/g/h", "/{tenant}/{bot}/say"])
    assert name(routes, "/ask") == name(routes, "/x/ASK/") == "chat_completions"
    assert name(routes, "/talk/42") == name(routes, "/Talk//42") == "messages"
    assert name(routes, "/x/a/b/c/d/e/f/g/h") == "responses"
    assert name(routes, "/acme/helper/say") == "chat_completions"
    assert name(routes, "/healthz") is None
    assert name(Routes.of(["/{tenant}/{bot}"]), "/acme/helper") == "chat_completions"


@pytest.mark.parametrize("route", ["ask", "/ask/{rest:path}", "/a/*/b", "/", "messages:ask"])
def test_a_route_that_could_never_match_is_refused(route: str) -> None:
    with pytest.raises(ConfigError, match="route"):
        Routes.of([route])


def test_an_unknown_api_of_a_route_is_refused() -> None:
    with pytest.raises(PluginNotFound, match="chat_completions"):
        Routes.of(["chat_completion:/ask"])


@pytest.mark.parametrize(
    ("method", "headers", "guarded"),
    [
        ("POST", [], True),
        ("post", [], True),
        ("PUT", [], True),
        ("QUERY", [], True),
        ("GET", [], False),
        ("OPTIONS", [(b"access-control-request-method", b"POST")], False),
        ("DELETE", [(b"content-length", b"0")], False),
        ("GET", [(b"Content-Length", b"20")], True),
        ("GET", [(b"content-length", b"00"), (b"content-length", b"20")], True),
        ("get", [(b"transfer-encoding", b"chunked")], True),
        ("GET", [(b"X-HTTP-Method-Override", b"POST")], True),
    ],
)
def test_other_methods_are_guarded_when_they_bring_a_body(method: str, headers: Any, guarded: bool) -> None:
    assert name(BASE, "/v1/chat/completions", method, headers=headers) == ("chat_completions" if guarded else None)


def test_the_method_chooses_between_apis_of_one_path() -> None:
    both = Routes([by_name("models"), by_name("chat_completions")], extra=[("/models", by_name("messages"))])
    assert name(both, "/models", "GET") == "models"
    assert name(both, "/models", "POST") == "messages"


def test_the_memo_holds_for_the_same_table_only() -> None:
    scope: dict[str, Any] = {"method": "POST", "path": "/ask", "root_path": "", "headers": []}
    assert BASE.match(scope) is None
    assert Routes.of(["/ask"]).match(scope) is not None, "a layer that knows fewer routes must not blind the others"
    scope["path"] = "/v1/chat/completions"
    assert BASE.match(scope) is not None, "a layer between has rewritten the path"
    scope["method"] = "GET"
    assert BASE.match(scope) is None
    scope["headers"] = [(b"content-length", b"2")]
    assert BASE.match(scope) is not None


def test_a_path_is_searched_for_once_and_clients_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    find = Routes._find
    monkeypatch.setattr(Routes, "_find", lambda self, path, root: (searched.append(path), find(self, path, root))[1])
    table = Routes.of(["/ask"])
    for _ in range(3):
        assert name(table, "/v1/chat/completions") == "chat_completions"
        assert name(table, "/elsewhere") is None
    assert searched == ["/v1/chat/completions", "/elsewhere"]
    for number in range(5_000):
        name(table, f"/x/{number}")
        name(table, f"/{'x' * 300}{number}")
    assert len(table._known) <= 1_000
    assert max(len(path) for path, _ in table._known) <= 200


def test_root_patterns_and_free_segments_of_the_gateway() -> None:
    table = Routes(ALL)
    assert name(table, "/v1/Models/gpt-4o", "GET") == "models"
    assert name(table, "/v1/files/embeddings", "GET") == "passthrough"
    assert name(table, "/app/v1/files", "GET") is None
    assert name(table, "/llm/v1/files", "GET", root="/llm") == "passthrough"


def test_normal() -> None:
    assert normal("/A/%2e%2E/b;x//c\\d?e") == "/b/c/d"
    assert normal("http://[/x") == "/http:/[/x"


@pytest.mark.parametrize("version", ["2", "2.0", "3"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_from_http_2_on_a_body_needs_no_header(version: str, method: str) -> None:
    routes = Routes(TEXT)
    scope = {"type": "http", "http_version": version, "method": method, "path": "/v1/chat/completions", "headers": []}
    assert routes.match(dict(scope)) is not None
    preflight = [(b"origin", b"https://a.example"), (b"access-control-request-method", b"POST")]
    found = routes.match({**scope, "headers": preflight})
    assert (found is None) == (method == "OPTIONS")
    assert routes.match({**scope, "http_version": "1.1"}) is None
