"""Turns `Settings` into a live `Stack`."""

from tianji_mw.compose.layers import compose, limits_of, upstream_of

__all__ = ["compose", "limits_of", "upstream_of"]
