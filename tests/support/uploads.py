"""Forms and bodies for the paths that go through unread, and how they are sent."""

from __future__ import annotations

from typing import Any

from tianji_mw.testing import drive

FORM = "multipart/form-data; boundary=XX"
AUDIO = "/v1/audio/transcriptions"
OK = {"text": "hello"}


def part(name: str, value: bytes, *, more: str = "") -> bytes:
    return b'--XX\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), more.encode(), value)


def file_part(content: bytes) -> bytes:
    return part("file", content, more='; filename="a.wav"\r\nContent-Type: audio/wav')


END = b"--XX--\r\n"
MODEL = part("model", b"gpt-4o")
RENAMED = part("model", b"gpt-4o-2024")


async def send(app: Any, *parts: bytes, path: str = AUDIO, kind: str = FORM, **options: Any) -> Any:
    headers = {"content-type": kind, "content-length": str(sum(map(len, parts))), **options.pop("headers", {})}
    return await drive(app, path=path, headers=headers, body_parts=parts or (b"",), **options)


def scope_of(length: int) -> dict[str, Any]:
    """The ASGI scope of an upload of this many bytes."""
    return {
        "type": "http", "method": "POST", "path": AUDIO, "raw_path": AUDIO.encode(), "query_string": b"",
        "headers": [(b"content-type", FORM.encode()), (b"content-length", b"%d" % length)], "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.4"}, "scheme": "http", "state": {}, "root_path": "",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
