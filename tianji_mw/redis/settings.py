"""Where Redis is and how to log in: one server, Sentinel or Cluster, in our names and LiteLLM's. Opens nothing.

Sources: LiteLLM 1.109 `cache_params` and environment variables; redis-py's URL form `redis[s]://user:password@host:port/db`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, model_validator

from tianji_mw.plugins import PluginSettings, in_our_names
from tianji_mw.redact import Secret

Port = Annotated[int, Field(ge=1, le=65535)]
Address = tuple[str, int]


def _addresses(value: Any) -> Any:
    """Each is `[host, port]`, `{"host": .., "port": ..}` or `"host:port"`; the whole may be the JSON text of a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('nodes are a JSON list, such as [["10.0.0.1", 6379]]') from None
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(_address(one) for one in value) if isinstance(value, list | tuple) else value


def _address(value: Any) -> Any:
    if isinstance(value, Mapping) and {"host", "port"} >= set(value) and "host" in value:
        return value["host"], value.get("port", 6379)
    if isinstance(value, str):
        host, colon, port = value.rpartition(":")
        return (host.strip("[]"), port) if colon and port.isdigit() else (value.strip("[]"), 6379)
    return value


Addresses = Annotated[tuple[tuple[str, Port], ...], BeforeValidator(_addresses)]


class RedisSettings(PluginSettings):
    """One Redis, for every concern; equal settings share one client.

    >>> RedisSettings(host="cache.internal").where
    'cache.internal:6379'
    >>> RedisSettings(redis_startup_nodes=[{"host": "10.0.0.1", "port": "7001"}]).mode
    'cluster'
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "url": ("REDIS_URL",),
        "host": ("REDIS_HOST",),
        "port": ("REDIS_PORT",),
        "username": ("REDIS_USERNAME",),
        "password": ("REDIS_PASSWORD",),
        "db": ("REDIS_DB",),
        "ssl": ("REDIS_SSL",),
        "startup_nodes": ("REDIS_CLUSTER_NODES",),
        "sentinel_nodes": ("REDIS_SENTINEL_NODES",),
        "service_name": ("REDIS_SERVICE_NAME",),
        "sentinel_username": ("REDIS_SENTINEL_USERNAME",),
        "sentinel_password": ("REDIS_SENTINEL_PASSWORD",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "redis_url": "url",
        "redis_host": "host",
        "redis_port": "port",
        "redis_username": "username",
        "redis_password": "password",
        "redis_db": "db",
        "redis_ssl": "ssl",
        "redis_startup_nodes": "startup_nodes",
        "addrs": "startup_nodes",
        "redis_service_name": "service_name",
        "redis_sentinel_nodes": "sentinel_nodes",
        "redis_sentinel_password": "sentinel_password",
        "socket_timeout": "op_timeout_s",
    }

    #: `redis://user:password@host:port/db`, or `rediss://` for TLS; its parts go before the fields below.
    url: Secret | None = None
    host: str = "127.0.0.1"
    port: Port = 6379
    #: The user of an ACL; without one, `default`.
    username: str = ""
    #: Revealed for every new connection, so that a rotated one is followed.
    password: Secret | None = None
    #: Database of a single server or of Sentinel's; a cluster has only 0.
    db: int = Field(default=0, ge=0)

    ssl: bool = False
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    ssl_ca_certs: str = ""
    ssl_check_hostname: bool = True
    ssl_certfile: str = ""
    ssl_keyfile: str = ""

    #: Some nodes of a cluster; the others are asked for.
    startup_nodes: Addresses = ()
    #: Sentinels, and the name of what they watch.
    sentinel_nodes: Addresses = ()
    service_name: str = ""
    sentinel_username: str = ""
    sentinel_password: Secret | None = None

    #: Most connections to one server; calls beyond wait, within `op_timeout_s`.
    max_connections: int = Field(default=50, ge=1, le=10_000)
    #: Most time of one operation with its retry, connecting included.
    op_timeout_s: float = Field(default=0.2, ge=0.02, le=60)
    #: Time of one question of the background probe, and of finding the servers.
    probe_timeout_s: float = Field(default=1.0, ge=0.1, le=60)

    @model_validator(mode="before")
    @classmethod
    def _our_names(cls, fields: Any) -> Any:
        fields = in_our_names(fields, cls.aliases)
        return _with_url(fields) if isinstance(fields, dict) and fields.get("url") else fields

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.startup_nodes and self.sentinel_nodes:
            raise ValueError("startup_nodes is for a cluster and sentinel_nodes for Sentinel; write one of them")
        if self.sentinel_nodes and not self.service_name:
            raise ValueError("Sentinel needs service_name, the name of what it watches, such as 'mymaster'")
        if self.service_name and not self.sentinel_nodes:
            raise ValueError("service_name needs sentinel_nodes, such as [['10.0.0.1', 26379]]")
        if self.startup_nodes and self.db:
            raise ValueError("a cluster has database 0 only; leave db out, and tell tenants apart by a namespace")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @property
    def mode(self) -> Literal["standalone", "sentinel", "cluster"]:
        """What is at the other end."""
        return "cluster" if self.startup_nodes else "sentinel" if self.sentinel_nodes else "standalone"

    @property
    def where(self) -> str:
        """Its address, for messages."""
        if self.sentinel_nodes:
            return self.service_name
        return shown(self.startup_nodes[0] if self.startup_nodes else (self.host, self.port))

    def connection(self) -> RedisSettings:
        """These settings without a subclass's own fields."""
        fields = {name: getattr(self, name) for name in RedisSettings.model_fields if name != "url"}
        return RedisSettings.model_validate(fields)


def shown(address: Address) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _with_url(fields: dict[str, Any]) -> dict[str, Any]:
    """The URL's parts as fields. Raises ValueError without showing the URL."""
    raw = fields["url"].reveal() if isinstance(fields["url"], Secret) else fields["url"]
    try:
        parts = urlsplit(str(raw))
        port, db = parts.port, parts.path.strip("/")
    except ValueError:
        raise ValueError("the URL of Redis cannot be read; write redis://user:password@host:6379/0") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or (db and not db.isdigit()):
        raise ValueError("the URL of Redis must look like redis://user:password@host:6379/0, or rediss:// for TLS")
    if parts.query:
        raise ValueError("options after '?' in the URL of Redis are not read; write them as fields of their own")
    found: dict[str, Any] = {"host": parts.hostname}
    if port:
        found["port"] = port
    if db:
        found["db"] = int(db)
    if parts.username:
        found["username"] = unquote(parts.username)
    if parts.password:
        found["password"] = Secret(unquote(parts.password))
    if parts.scheme == "rediss":
        found["ssl"] = True
    return {**fields, **found}
