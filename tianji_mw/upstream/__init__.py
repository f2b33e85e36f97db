"""Outgoing HTTP for the hot path: the small `Transport` protocol and its implementations.

`base.py` the protocol. `http1.py` the lean client that serves nearly all calls, over `pool.py`, `connection.py` and
`connect.py`. `aiohttp.py` for proxies and `http2.py` for HTTP/2, behind the same protocol. `choose.py` sends each
request through the one that fits. Nothing here knows of LLMs; retries are made elsewhere. Redirects are never followed:
no upstream may move a request that carries a key to another host.
"""

from tianji_mw.upstream.base import (
    Deadlines,
    RawHeaders,
    Transport,
    TransportOptions,
    UpstreamRequest,
    UpstreamResponse,
)

__all__ = ["Deadlines", "RawHeaders", "Transport", "TransportOptions", "UpstreamRequest", "UpstreamResponse"]
