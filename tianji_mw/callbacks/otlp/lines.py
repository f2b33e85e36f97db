"""Exports as lines of OTLP JSON, into a file or on the standard output: for people, and to be sent again later."""

from __future__ import annotations

import os
import sys

from tianji_mw.callbacks.base import NotDelivered


class FileLines:
    """Appends lines to a file that only its owner reads. One write for each line: processes may share the file."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: bytes) -> None:
        """Append a line. Raises NotDelivered; half a line then stands alone and spoils no other."""
        whole = line + b"\n"
        written = 0
        try:
            written = os.write(self._file, whole)
        except OSError as error:
            raise NotDelivered(f"the file cannot be written: {error.strerror}") from None
        if written < len(whole):
            self._end_line()
            raise NotDelivered("the file takes no more")

    def _end_line(self) -> None:
        try:
            os.write(self._file, b"\n")
        except OSError:
            pass

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class ConsoleLines:
    """Writes lines to the standard output."""

    def write(self, line: bytes) -> None:
        """Raises NotDelivered when nobody reads it any more."""
        try:
            sys.stdout.write(line.decode("utf-8", "replace") + "\n")
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            raise NotDelivered(f"the standard output cannot be written ({type(error).__name__})") from None

    def close(self) -> None:
        """It is not ours to close."""
