"""The `model` field of a multipart form that streams by: found in its first bytes, and watched for ever after.

Only part heads are read, between true boundaries: what stands inside of a file is content, whatever it looks like. A
second `model`, or one that comes too late to be judged, raises: the provider must not read another than was checked.

Sans I/O. Source: RFC 7578 (multipart/form-data), RFC 2046 section 5.1.1 (boundaries).
"""

from __future__ import annotations

import re
from email.message import Message
from typing import Final
from urllib.parse import unquote

from tianji_mw.errors import InvalidRequest

#: Longest head of one part.
_MAX_HEAD: Final = 8 << 10
_FOLD: Final = re.compile(rb"\r\n[ \t]+")
_NAME: Final = re.compile(rb';\s*name\*?\s*=\s*("(?:[^"\\\r\n]|\\.)*"|[^;\s]+)', re.IGNORECASE)


class Form:
    """One form. `feed` takes its bytes in order and keeps none but an unfinished head.

    >>> form = Form('multipart/form-data; boundary="b"')
    >>> body = b'--b\\r\\nContent-Disposition: form-data; name="model"\\r\\n\\r\\nwhisper-1\\r\\n--b--'
    >>> form.feed(body)
    >>> form.span, body[slice(*form.span)]
    ((53, 62), b'whisper-1')
    """

    __slots__ = ("_buffer", "_late", "_mark", "_model_at", "_offset", "span")

    def __init__(self, content_type: str) -> None:
        message = Message()
        message["content-type"] = content_type
        boundary = message.get_param("boundary")
        if not isinstance(boundary, str) or not 1 <= len(boundary) <= 200:
            raise InvalidRequest("The form has no boundary in its content type.")
        self._mark = b"\r\n--" + boundary.encode("latin-1", "replace")
        # The first boundary has no line end before it.
        self._buffer = b"\r\n"
        self._offset = -2
        self._late = False
        self._model_at = -1
        #: Where the value of `model` stands in the form; None while it was not found.
        self.span: tuple[int, int] | None = None

    def no_more_models(self) -> None:
        """From here on a `model` comes too late."""
        self._late = True

    def feed(self, data: bytes) -> None:
        """More bytes. Raises InvalidRequest for a `model` that cannot be judged."""
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while (found := buffer.find(self._mark, at)) >= 0:
            if self._model_at >= 0:
                self.span = (self._model_at, self._offset + found)
                self._model_at = -1
            end = buffer.find(b"\r\n\r\n", found)
            if end < 0:
                if buffer.startswith(b"--", found + len(self._mark)):
                    at = len(buffer)  # the last boundary; what follows is of no meaning
                    break
                if len(buffer) - found > _MAX_HEAD:
                    raise InvalidRequest("A part of the form has a head that is too long.")
                self._keep(buffer, found)
                return
            if _names_model(buffer[found:end]):
                if self._late or self.span is not None:
                    raise InvalidRequest("The form's 'model' must come once, and before its file.", param="model")
                self._model_at = self._offset + end + 4
            # The blank line of the head may be the line end before the next boundary.
            at = end + 2
        self._keep(buffer, max(at, len(buffer) - len(self._mark) + 1))

    def _keep(self, buffer: bytes, start: int) -> None:
        self._offset += start
        self._buffer = buffer[start:]


def _names_model(head: bytes) -> bool:
    """Whether a part is the field `model`, as generously as any parser might read its name."""
    for line in _FOLD.sub(b" ", head).split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            for found in _NAME.findall(value):
                name = unquote(found.strip(b'"').replace(b"\\", b"").decode("utf-8", "replace"))
                if name.rpartition("'")[2].strip().lower() == "model":
                    return True
    return False
