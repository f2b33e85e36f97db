"""Secrets are found by form and place; what only looks like one is left alone. Keys are made when the test runs."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import time
import uuid
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.call import Call
from tianji_mw.guardrails import leaks
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.secret_leak import SecretLeak
from tianji_mw.plugins import find as find_plugin

CALL = cast(Call, None)
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def some(length: int, alphabet: str = ALNUM, seed: int = 1) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


def jwt() -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "1", "name": "a"})]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (*parts, b"s" * 32))


def pem(kind: str, lines: int = 4) -> str:
    body = "\n".join(some(64, seed=n) for n in range(lines))
    return f"-----BEGIN {kind} KEY-----\n{body}\n-----END {kind} KEY-----"


KEYS = {
    "OPENAI_KEY": "sk-" + "proj-" + some(74) + "T3Blbk" + "FJ" + some(74, seed=2),
    "ANTHROPIC_KEY": "sk-" + "ant-api03-" + some(93) + "AA",
    "AWS_KEY": "AK" + "IA" + some(16, string.ascii_uppercase + "234567"),
    "GOOGLE_KEY": "AI" + "za" + some(35),
    "GITHUB_TOKEN": "gh" + "p_" + some(36),
    "GITLAB_TOKEN": "gl" + "pat-" + some(20),
    "SLACK_TOKEN": "xo" + "xb-" + some(12, string.digits) + "-" + some(12, string.digits) + "-" + some(24),
    "STRIPE_KEY": "sk_" + "live_" + some(24),
    "HUGGINGFACE_TOKEN": "hf" + "_" + some(34, string.ascii_letters),
    "NPM_TOKEN": "np" + "m_" + some(36),
    "PYPI_TOKEN": "py" + "pi-AgEIcHlwaS5vcmc" + some(120),
    "SENDGRID_KEY": "S" + "G." + some(22) + "." + some(43, seed=2),
    "TWILIO_KEY": "S" + "K" + some(32, HEX),
    "TELEGRAM_TOKEN": some(9, "123456789") + ":AA" + some(33),
    "AZURE_SECRET": some(3) + "8" + "Q~" + some(34),
    "DIGITALOCEAN_TOKEN": "do" + "p_v1_" + some(64, HEX),
    "VAULT_TOKEN": "hv" + "s." + some(95),
    "JWT": jwt(),
    "PRIVATE_KEY": pem("RSA " + "PRIVATE"),
}

PLACES = {
    "database": (f"postgres://app:{some(14)}@db.internal/shop", some(14)),
    "assigned": (f'API_KEY = "{some(32)}"', some(32)),
    "json": (f'{{"client_secret": "{some(32)}"}}', some(32)),
    "yaml": (f"access_token: {some(40)}", some(40)),
    "hex": (f"secret_key={some(32, HEX)}", some(32, HEX)),
    "go": (f'var apiToken string = "{some(32)}"', some(32)),
    "xml": (f"<apiToken>{some(32)}</apiToken>", some(32)),
    "query": (f"https://x.example/?access_token={some(32)}&a=b", some(32)),
    "prose": (f"my api key is {some(32)} ok", some(32)),
    "password": ("password: " + "h0rse" + "Battery!", "h0rse" + "Battery!"),
    "bearer": (f"Authorization: Bearer {some(32)}", some(32)),
    "curl": ("curl -u admin:" + "h0rse!x https://a.b", "h0rse!x"),
    "azure": (f"AccountName=a;AccountKey={some(86)}==;x=y", some(86) + "=="),
}

TRAPS = {
    "uuid": f"request_id={uuid.UUID(int=2**127 + 12345)}",
    "uuid as a token": f"token={uuid.UUID(int=2**127 + 12345)}",
    "git": f"commit {hashlib.sha1(b'x').hexdigest()}",
    "tree": f"100644 blob {hashlib.sha1(b'y').hexdigest()}\tsrc/token.py",
    "lock": '"integrity": "sha512-' + base64.b64encode(hashlib.sha512(b"z").digest()).decode() + '"',
    "pip": f"--hash=sha256:{hashlib.sha256(b'q').hexdigest()}",
    "token hash": f"token_hash={hashlib.sha256(b'q').hexdigest()}",
    "cache key": f'object_key = "{hashlib.sha256(b"q").hexdigest()}"',
    "public key": f"public_key: {some(44)}",
    "image": "data:image/png;base64," + base64.b64encode(random.Random(3).randbytes(3000)).decode(),
    "variable": "password=${DB_PASSWORD_2}",
    "template": "api_key: {{ values.apiKey1 }}",
    "shell": 'curl -H "Authorization: Bearer $API_KEY_2"',
    "x": "gh" + "p_" + "x" * 36,
    "words": "api_key = 'your-api-key-2-goes-here'",
    "documentation": "AK" + "IA" + "IOSFODNN7" + "EXAMPLE",
    "code": "token = settings.auth.token2_provider",
    "call": "password = getpass2(prompt)",
    "prose": "The password must have 8 characters, and the token is checked every 30 seconds.",
    "empty block": "-----BEGIN " + "PRIVATE KEY-----\n...\n-----END " + "PRIVATE KEY-----",
    "count": "max_tokens: 1000000000",
}


@pytest.mark.parametrize("label", KEYS)
@pytest.mark.parametrize("around", ["{}", "my key is {} and more", 'x = "{}"', "({}),"])
def test_formats_of_vendors(label: str, around: str) -> None:
    text = around.format(KEYS[label])
    start = text.index(KEYS[label])
    assert any(span.start <= start + 8 and span.end >= start + len(KEYS[label]) - 2 for span in leaks.find(text)), (
        "the whole key is covered"
    )


@pytest.mark.parametrize("label", KEYS)
def test_a_key_alone_has_its_kind(label: str) -> None:
    assert [span.label for span in leaks.find(KEYS[label])] == [label]


@pytest.mark.parametrize("name", PLACES)
def test_places(name: str) -> None:
    text, secret = PLACES[name]
    assert [text[span.start : span.end] for span in leaks.find(text)] == [secret]


@pytest.mark.parametrize("name", TRAPS)
def test_what_only_looks_like_one(name: str) -> None:
    assert leaks.find(TRAPS[name]) == []


async def test_masks_or_blocks() -> None:
    text = f"use {KEYS['GITHUB_TOKEN']} or {KEYS['STRIPE_KEY']}"
    verdict = await SecretLeak().check(text, CALL)
    assert not verdict.blocked
    assert verdict.category == "GITHUB_TOKEN,STRIPE_KEY"
    assert verdict.spans[0] == Span(4, 44, "GITHUB_TOKEN")
    verdict = await SecretLeak(action="block").check(text, CALL)
    assert verdict.blocked
    assert verdict.detail == {"kinds": ["GITHUB_TOKEN", "STRIPE_KEY"]}
    assert KEYS["GITHUB_TOKEN"] not in repr(verdict)
    assert not (await SecretLeak(action="block").check("hello", CALL)).blocked


async def test_a_private_key_without_its_end_is_not_masked_but_ends_the_call() -> None:
    whole = KEYS["PRIVATE_KEY"]
    assert (await SecretLeak().check(whole[:150], CALL)).blocked
    assert not (await SecretLeak().check(f"a {whole} b", CALL)).blocked


def test_it_is_the_plugin_of_its_name() -> None:
    assert find_plugin("guardrails", "secret_leak", cast(Any, SecretLeak.__mro__[1])) is SecretLeak


PIECES = st.sampled_from(
    [*KEYS.values(), *TRAPS.values(), *(text for text, _ in PLACES.values()), " ", "\n", '"', "\u0130"]
)


@given(st.lists(st.one_of(st.text(max_size=30), PIECES), max_size=12))
def test_any_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    end = 0
    for span in leaks.find(text):
        assert end <= span.start < span.end <= len(text)
        assert span.replacement is None
        assert span.label.replace("_", "").isalnum()
        end = span.end


HOSTILE = [
    "ey",
    "ey-",
    "://a",
    "token=",
    "key:",
    "-----BEGIN PRIVATE KEY-----",
    "s.",
    "a.",
    "curl -u a:b ",
    "SG.a",
    "=",
    "Q~",
]


@pytest.mark.parametrize(
    "piece", [*HOSTILE, "sk-proj-", "authorization: basic ", "password is ", "x" * 300 + "=", "\u0130"]
)
def test_time_is_linear(piece: str) -> None:
    def spent(size: int) -> float:
        text = piece * (size // len(piece))
        best = 9.0
        for _ in range(3):
            begin = time.thread_time()
            leaks.find(text)
            best = min(best, time.thread_time() - begin)
        return best

    assert spent(100_000) < 20 * max(spent(10_000), 0.001)
