"""Images and files, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.bridges import media
from tianji_mw.errors import InvalidRequest, UnsupportedParams


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("data:image/png;base64,aGk=", ("image/png", "aGk=")),
        ("data:image/png;charset=utf-8;name=a.png;base64,aGk=", ("image/png", "aGk=")),
        ("DATA:IMAGE/PNG;BASE64,aGk=", ("image/png", "aGk=")),
        ("data:image/jpg;base64,aGk=", ("image/jpeg", "aGk=")),
        ("data:image/png;base64,aG\n k\t=", ("image/png", "aGk=")),
        ("data:image/png;base64,aGk%3D", ("image/png", "aGk=")),
        ("data:,hi%21", ("text/plain", "aGkh")),
        ("https://example.org/a,b", None),
        ("data:image/png;base64", None),
        ("", None),
    ],
)
def test_data_uri(uri: str, found: tuple[str, str] | None) -> None:
    assert media.data_uri(uri) == found


@given(st.text())
def test_data_uri_is_total(text: str) -> None:
    media.data_uri(text)
    media.data_uri("data:" + text)


B64 = {"type": "base64", "media_type": "application/pdf", "data": "aGk="}


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ({"file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
         {"type": "document", "source": B64, "title": "a.pdf"}),
        ({"file": {"file_data": "aGk="}}, {"type": "document", "source": B64}),
        ({"file": {"file_data": "aGk=", "format": "application/pdf"}}, {"type": "document", "source": B64}),
        ({"file": {"file_data": "aGk=", "filename": "a.png"}},
         {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}),
        ({"file": {"file_data": "data:text/plain;base64,aGk="}},
         {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}}),
        ({"file": {"file_id": "file_1"}}, {"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
        ({"file": {"file_id": "https://example.org/a.pdf?x=1"}},
         {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf?x=1"}}),
    ],
)  # fmt: skip
def test_files(part: dict[str, object], block: dict[str, object]) -> None:
    assert media.block_of_file(part, "p") == block


@pytest.mark.parametrize("part", [{}, {"file": {}}, {"file": "x"}])
def test_a_file_without_data_is_refused(part: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        media.block_of_file(part, "messages[0].content[1]")
    assert caught.value.param == "messages[0].content[1]"


@pytest.mark.parametrize("url", ["", "gs://bucket/a.png", "file:///etc/passwd", "a.png"])
def test_other_image_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        media.block_of_image({"image_url": {"url": url}}, "p")


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"source": {"type": "text", "data": "hi"}}, [{"type": "text", "text": "hi"}]),
        ({"source": {"type": "content", "content": "hi"}}, [{"type": "text", "text": "hi"}]),
        ({"source": {"type": "content", "content": [
            {"type": "text", "text": "hi"}, {"type": "image", "source": {"type": "url", "url": "https://e.org/a"}}]}},
         [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "https://e.org/a"}}]),
        ({"title": "a.pdf", "source": B64},
         [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}}]),
        ({"source": {"type": "file", "file_id": "f"}}, [{"type": "file", "file": {"file_id": "f"}}]),
    ],
)  # fmt: skip
def test_documents(block: dict[str, object], parts: list[object]) -> None:
    assert media.parts_of_document(block, "p") == parts


def test_what_chat_has_no_field_for_is_refused() -> None:
    with pytest.raises(UnsupportedParams):
        media.parts_of_document({"source": {"type": "url", "url": "https://example.org/a.pdf"}}, "p")
    with pytest.raises(UnsupportedParams):
        media.part_of_image({"source": {"type": "file", "file_id": "f"}}, "p")
