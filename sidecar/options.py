"""What the command line says about one run; picklable, so that every worker builds the same app from it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class RunOptions(BaseModel):
    """Options of `tianji-sidecar run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: None runs the embedded default.
    config: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=4000, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=4001, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    #: Ingress mode: everything goes to this app, LLM routes through the middlewares.
    app_upstream: str = ""
    strict: bool = False
    #: Start although secrets cannot be had yet; calls that need one are refused until it can.
    allow_unresolved: bool = False
    #: Listen beyond loopback without any key.
    open: bool = False
    quiet: bool = False
