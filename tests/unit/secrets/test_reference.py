"""How references are written, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.secrets.reference import SCHEMES, is_reference, parse


@pytest.mark.parametrize(
    ("text", "kind", "store", "path", "field", "version"),
    [
        ("aws-sm://prod/llm#OPENAI", "aws", "", "prod/llm", "OPENAI", ""),
        ("aws-sm://prod/llm#OPENAI?stage=AWSPREVIOUS", "aws", "", "prod/llm", "OPENAI", "AWSPREVIOUS"),
        ("aws-sm://arn:aws:secretsmanager:eu-west-1:1:secret:a/b-Ab12Cd", "aws", "",
         "arn:aws:secretsmanager:eu-west-1:1:secret:a/b-Ab12Cd", "", ""),
        ("gcp-sm://projects/p/secrets/x/versions/3", "google", "", "projects/p/secrets/x/versions/3", "", ""),
        ("azure-kv://openai?version=4387e9", "azure", "", "openai", "", "4387e9"),
        ("vault://llm/openai?version=3#key", "vault", "", "llm/openai", "key", "3"),
        ("secret://corp/llm/openai#key", "", "corp", "llm/openai", "key", ""),
        ("file:///run/secrets/openai", "file", "", "/run/secrets/openai", "", ""),
        ("env://OPENAI_API_KEY", "env", "", "OPENAI_API_KEY", "", ""),
    ],
)  # fmt: skip
def test_forms(text: str, kind: str, store: str, path: str, field: str, version: str) -> None:
    ref = parse(text)
    assert (ref.kind, ref.store, ref.path, ref.field, ref.version) == (kind, store, path, field, version)
    assert is_reference(text)
    assert parse(str(ref)) == ref


def test_options() -> None:
    ref = parse("vault://a/b?ttl=90&encoding=base64#f")
    assert (ref.ttl_s, ref.base64, ref.field) == (90.0, True, "f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vault://", "names no secret"),
        ("vault://#key", "names no secret"),
        ("secret://corp", "secret://NAME/path"),
        ("secret:///x", "secret://NAME/path"),
        ("vault://a/../b", "'..'"),
        ("vault://..", "'..'"),
        ("vault://a\nb", "control character"),
        ("vault://a\u2028b", "control character"),
        ("vault://a?vresion=1", "'vresion'"),
        ("vault://a?ttl=soon", "ttl is a number"),
        ("vault://a?ttl=0.1", "ttl is a number"),
        ("vault://a?encoding=hex", "base64"),
        ("https://a/b", "begins with one of"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


@given(
    st.sampled_from([scheme for scheme in SCHEMES if scheme != "secret"]),
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="#?"), min_size=1),
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="#?")),
)
def test_a_reference_survives_being_written(scheme: str, path: str, field: str) -> None:
    text = f"{scheme}://{path}#{field}"
    try:
        ref = parse(text)
    except ValueError:
        assert ".." in path.split("/") or not path.strip("/")
        return
    assert (ref.path, ref.field) == (path, field)
    assert parse(str(ref)) == ref
