"""Images and files as both APIs write them: OpenAI's data URIs, Anthropic's `source` objects.

It fetches nothing: an address stays an address. Source: OpenAI API reference, "Chat" (content parts); Anthropic API
reference, "Messages" (image and document blocks); RFC 2397 for data URIs.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from mimetypes import guess_type
from typing import Final
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.shape import record, string
from tianji_mw.errors import InvalidRequest, UnsupportedParams

_PDF: Final = "application/pdf"


def data_uri(uri: str) -> tuple[str, str] | None:
    """Media type (lower case, without parameters) and clean base64 of a data URI; None for any other text.

    >>> data_uri("data:IMAGE/PNG;charset=utf-8;base64,iVBO Rw0=")
    ('image/png', 'iVBORw0=')
    """
    head, comma, data = uri.partition(",")
    if not comma or head[:5].lower() != "data:":
        return None
    kind, *parameters = (part.strip().lower() for part in head[5:].split(";"))
    kind = "image/jpeg" if kind == "image/jpg" else kind or "text/plain"
    if "base64" not in parameters:
        return kind, b64encode(unquote_to_bytes(data)).decode()
    return kind, "".join((unquote(data) if "%" in data else data).split())


# --- chat -> messages -------------------------------------------------------------------------------------------


def block_of_image(part: JSON, where: str) -> dict[str, JSON]:
    """An `image_url` part as an image or document block. Raises InvalidRequest naming the place."""
    image = part.get("image_url")
    url = string(image if isinstance(image, str) else record(image).get("url")).strip()
    if found := data_uri(url):
        return _block(*found)
    if not _is_http(url):
        raise InvalidRequest("'image_url' must be a data URI or an http(s) address.", param=where)
    return _block_of_url(url)


def block_of_file(part: JSON, where: str) -> dict[str, JSON]:
    """A `file` part as a document (or image) block. Raises InvalidRequest naming the place."""
    file = record(part.get("file"))
    name, data, file_id = (string(file.get(key)) for key in ("filename", "file_data", "file_id"))
    if data:
        if _is_http(data):
            block = _block_of_url(data)
        else:
            kind = string(file.get("format")).lower() or guess_type(name)[0] or _PDF
            block = _block(*(data_uri(data) or (kind, "".join(data.split()))))
    elif file_id:
        block = _block_of_url(file_id) if _is_http(file_id) else _document({"type": "file", "file_id": file_id})
    else:
        raise InvalidRequest("A file part needs 'file_data' or 'file_id'.", param=where)
    return {**block, "title": name} if name and block["type"] == "document" else block


def _block(kind: str, data: str) -> dict[str, JSON]:
    if kind.startswith("image/"):
        return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}
    if kind.startswith("text/") or kind == "application/json":
        # Anthropic takes texts as text, not as base64.
        try:
            text = b64decode(data).decode("utf-8", "replace")
        except (Base64Error, ValueError):
            text = data
        return _document({"type": "text", "media_type": "text/plain", "data": text})
    return _document({"type": "base64", "media_type": kind, "data": data})


def _block_of_url(url: str) -> dict[str, JSON]:
    try:
        path = urlsplit(url).path
    except ValueError:
        path = ""
    kind = "document" if path.lower().endswith(".pdf") else "image"
    return {"type": kind, "source": {"type": "url", "url": url}}


def _document(source: dict[str, JSON]) -> dict[str, JSON]:
    return {"type": "document", "source": source}


def _is_http(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


# --- messages -> chat -------------------------------------------------------------------------------------------


def part_of_image(block: JSON, where: str) -> dict[str, JSON]:
    """An image block as an `image_url` part. Raises UnsupportedParams for files kept at Anthropic."""
    source = record(block.get("source"))
    if source.get("type") == "base64":
        url = f"data:{string(source.get('media_type'))};base64,{string(source.get('data'))}"
    elif source.get("type") == "url":
        url = string(source.get("url"))
    else:
        raise UnsupportedParams("This provider takes images as base64 or as an address only.", param=where)
    return {"type": "image_url", "image_url": {"url": url}}


def parts_of_document(block: JSON, where: str) -> list[dict[str, JSON]]:
    """A document block as text or `file` parts. Raises UnsupportedParams for addresses, which chat has no field for."""
    source, title = record(block.get("source")), string(block.get("title"))
    match source.get("type"):
        case "text":
            return [{"type": "text", "text": string(source.get("data"))}]
        case "content":
            inner = source.get("content")
            items = [{"type": "text", "text": inner}] if isinstance(inner, str) else inner
            blocks = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
            return [part_of_image(b, where) if b.get("type") == "image" else _text(b) for b in blocks]
        case "base64":
            data = f"data:{string(source.get('media_type')) or _PDF};base64,{string(source.get('data'))}"
            return [{"type": "file", "file": {"filename": title or "document.pdf", "file_data": data}}]
        case "file":
            return [{"type": "file", "file": {"file_id": string(source.get("file_id"))}}]
    raise UnsupportedParams("This provider takes documents as text, base64 or file id only.", param=where)


def _text(block: JSON) -> dict[str, JSON]:
    return {"type": "text", "text": string(block.get("text"))}
