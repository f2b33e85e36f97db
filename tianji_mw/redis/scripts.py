"""Lua scripts: sent by their hash, and in full where the server does not know them yet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.redis.errors import Arg, KeysApart, RedisFailed
from tianji_mw.redis.slots import slot_of

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis


class Script:
    """One script. It runs at one server, so all of its keys must lie in one hash slot, on a single server too.

    >>> HIT = Script("return redis.call('INCR', KEYS[1])")
    >>> await HIT.run(redis, [tagged("key-7", "rpm")])                                  # doctest: +SKIP
    """

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.sha: Final = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self, redis: Redis, keys: Sequence[str], args: Sequence[Arg] = (), *, repeatable: bool = False
    ) -> Any:
        """Its answer. Raises KeysApart before anything is sent, and RedisFailed.

        `repeatable`: running twice does no harm, so it may be sent again after a connection broke.
        """
        if not keys:
            raise KeysApart("a script needs a key: its slot says which server runs it")
        if len({slot_of(key) for key in keys}) > 1:
            raise KeysApart("the keys of a script lie in several hash slots; give them one hash tag with tagged()")
        tail = (len(keys), *keys, *args)
        try:
            return await redis.run("EVALSHA", self.sha, *tail, key=keys[0], repeatable=repeatable)
        except RedisFailed as error:
            if error.code != "NOSCRIPT":
                raise
        return await redis.run("EVAL", self.source, *tail, key=keys[0], repeatable=repeatable)
