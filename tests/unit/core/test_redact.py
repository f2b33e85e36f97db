"""Secrets never show themselves; headers, URLs and log records are cleaned."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import sys
import traceback
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from tianji_mw import redact
from tianji_mw.redact import MASK, Secret, SecretFilter

VALUE = "sk-canary-0123456789"
SECRET = Secret(VALUE)


class Model(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    key: Secret
    optional: Secret | None = None


def shown() -> list[str]:
    model = Model(key=VALUE)  # type: ignore[arg-type]
    texts = [repr(SECRET), str(SECRET), f"{SECRET}", f"{SECRET:>40}", f"{SECRET!r}", "%s %r" % (SECRET, SECRET)]  # noqa: UP031
    texts += [
        repr(model),
        str(model),
        str(model.model_dump()),
        model.model_dump_json(),
        json.dumps(model.model_dump(mode="json")),
    ]
    texts += [repr({"k": [SECRET]}), str(vars(model)), json.dumps(SECRET, default=str), str(Model.model_json_schema())]
    return texts


@pytest.mark.parametrize("text", shown(), ids=range(len(shown())))
def test_a_secret_never_shows(text: str) -> None:
    assert VALUE not in text


def test_a_secret_does_not_leave_the_process() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(SECRET)
    assert copy.copy(SECRET) is SECRET
    assert copy.deepcopy([SECRET])[0] is SECRET
    assert not hasattr(SECRET, "__dict__")


def test_a_traceback_does_not_show_a_secret() -> None:
    try:
        raise ValueError(f"no such key {SECRET}")
    except ValueError:
        report = "".join(traceback.TracebackException(*sys.exc_info(), capture_locals=True).format())  # type: ignore[arg-type]
    assert VALUE not in report
    assert "SECRET" in report


def test_a_validation_error_does_not_show_a_secret() -> None:
    with pytest.raises(ValueError, match="key") as caught:
        Model(key=[VALUE])  # type: ignore[arg-type]
    assert VALUE not in str(caught.value)


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("a")) == hash(Secret("a"))
    assert (bool(Secret("")), bool(Secret("x"))) == (False, True)
    assert Secret("\ud800") != Secret("a")
    assert Model(key=SECRET).key.reveal() == VALUE
    assert Model.model_validate_json(json.dumps({"key": VALUE})).key == SECRET


def test_credentials_in_headers_are_masked() -> None:
    pairs = [(b"Authorization", b"Bearer x"), (b"X-API-Key", b"x"), (b"content-type", b"a/b"), (b"COOKIE", b"x")]
    assert redact.headers(pairs) == [
        ("authorization", MASK),
        ("x-api-key", MASK),
        ("content-type", "a/b"),
        ("cookie", MASK),
    ]


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("https://user:pass@host:8443/v1/chat?key=abc#frag", "https://host:8443/v1/chat"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x"),
        ("http://host:bad/x", "http://host/x"),
        ("http://[oops/x?key=abc", "(an address that cannot be read)"),
        ("not a url", "not a url"),
        ("", ""),
    ],
)
def test_addresses_lose_their_credentials(value: str, clean: str) -> None:
    assert redact.url(value) == clean


def test_texts_lose_known_secrets() -> None:
    assert redact.text(f"bad key {VALUE}!", [SECRET]) == f"bad key {MASK}!"
    assert redact.text("short ab", [Secret("ab")]) == "short ab"


def logger() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(SecretFilter([SECRET]))
    log = logging.Logger("test")
    log.addHandler(handler)
    return log, stream


def test_the_filter_cleans_messages_arguments_and_tracebacks() -> None:
    log, stream = logger()
    log.warning("key %s and %d", VALUE, 5)
    log.warning(f"inline {VALUE}")
    try:
        raise ValueError(f"echo {VALUE}")
    except ValueError:
        log.exception("failed")
    log.warning("plain %d", 5)
    assert VALUE not in stream.getvalue()
    assert stream.getvalue().count(MASK) == 3
    assert "plain 5" in stream.getvalue()
    assert "Traceback" in stream.getvalue()


def test_the_filter_never_raises_into_the_code_that_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log, _ = logger()
    wrong: Any = ("%d", "x")
    log.warning(*wrong)
