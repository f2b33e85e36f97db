"""Reasons of validation errors, for people: without pydantic's frame, and without the value, which may be a secret."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """What the first thing is that is wrong, and where."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error).splitlines()[0]
    found = errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else str(found["msg"])
