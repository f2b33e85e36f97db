"""Spans of calls, their attributes and OTLP: what all destinations share that speak it. No plugin is in here."""
