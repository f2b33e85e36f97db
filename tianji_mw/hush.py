"""Keeps an SDK from writing what a store answered into its own DEBUG log, as botocore does, bodies and all.

Only for threads of ours: what the rest of the process does with the same SDK stays visible.
"""

from __future__ import annotations

import logging
from typing import Final

#: How names of our threads begin, and of those of `BlockingStore`.
_OURS: Final = "tianji-"
THREADS: Final = f"{_OURS}secrets"


class _Hush(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not (record.threadName or "").startswith(_OURS)


def hush(package: str) -> None:
    """Silence the DEBUG log of all modules of `package` that are loaded by now."""
    for name in [n for n in logging.root.manager.loggerDict if n == package or n.startswith(f"{package}.")]:
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Hush) for found in logger.filters):
            logger.addFilter(_Hush())
