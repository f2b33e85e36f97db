"""What goes out to a provider: the body and the headers of one attempt. It sends nothing.

The client's own bytes are kept wherever that is possible: only the model's name is replaced in place, and usage asked
for at the end. Everything else is encoded anew from the parsed request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from tianji_mw import jsonbytes
from tianji_mw.apis.base import JSON
from tianji_mw.errors import InvalidRequest, UnsupportedParams, UpstreamError
from tianji_mw.params import OWN_FIELDS, ParamRules

if TYPE_CHECKING:
    from tianji_mw.bridges.base import Bridge, Context
    from tianji_mw.call import Call
    from tianji_mw.plan import Plan
    from tianji_mw.providers.base import Provider
    from tianji_mw.routing.base import Deployment
    from tianji_mw.upstream import Deadlines, RawHeaders

#: Request fields that say what happens to the others.
_OF_FIELDS: Final = frozenset({"drop_params", "additional_drop_params", "allowed_openai_params"})
#: LiteLLM's headers for the limits of one request.
_TIMEOUTS: Final = frozenset({b"x-litellm-timeout", b"x-litellm-stream-timeout"})
_ASK_USAGE: Final = b'{"include_usage":true}'
#: APIs whose streams tell usage only when asked.
_USAGE_ON_REQUEST: Final = frozenset({"chat_completions", "completions"})
#: What the layers outside have read and judged; `extra_body` must not bring another.
_JUDGED: Final = OWN_FIELDS | {
    "model", "messages", "input", "prompt", "system", "instructions", "tools", "stream", "query", "documents", "texts",
    "suffix",
}  # fmt: skip
#: Two names of one limit: a provider refuses a request with both.
_LIMITS: Final = (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens"))


def wants_usage_chunk(request: Mapping[str, JSON]) -> bool:
    """Whether the client asked for a stream's usage."""
    options = request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def asks_for_usage(call: Call) -> bool:
    """Whether we ask the provider for a stream's usage that the client did not ask for, and so take out again."""
    return call.want_usage and call.api.name in _USAGE_ON_REQUEST and not wants_usage_chunk(call.request)


async def renew(provider: Provider) -> bool:
    """Ask for the provider's secrets again, as one of them was refused; whether any has changed."""
    return any([await secret.renew() for secret in provider.secrets])


def rules_for(rules: ParamRules, request: Mapping[str, JSON]) -> ParamRules:
    """A deployment's rules with what the request itself says about its fields."""
    if _OF_FIELDS.isdisjoint(request):
        return rules
    drop = _listed(request, "additional_drop_params")
    allowed = _listed(request, "allowed_openai_params")
    dropping = request.get("drop_params")
    return replace(
        rules,
        drop_unsupported=dropping if isinstance(dropping, bool) else rules.drop_unsupported,
        drop=(*rules.drop, *drop),
        allowed=rules.allowed | set(allowed),
    )


def _listed(request: Mapping[str, JSON], name: str) -> list[str]:
    """A list of field names in the request. Raises InvalidRequest for anything else."""
    value = request.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip(".[] ") for item in value):
        raise InvalidRequest(f"'{name}' must be a list of field names.", param=name)
    return value


def edits(call: Call, plan: Plan, rules: ParamRules, model: str, *, ask_usage: bool) -> bool:
    """Whether more has to change in the request than what `spliced` can do."""
    request = call.request
    return (
        plan.bridge is not None
        or rules.changes(request)
        or (ask_usage and "stream_options" in request)
        or plan.provider.prepares(request, plan.wire, model)
    )


def spliced(call: Call, model: str, *, ask_usage: bool) -> bytes | None:
    """The client's bytes with the model's name replaced and usage asked for; None where the place cannot be told."""
    body: bytes | None = call.body
    if body is not None and model != call.model:
        body = jsonbytes.replace_value(body, "model", orjson.dumps(model))
    if body is not None and ask_usage:
        body = jsonbytes.append_field(body, "stream_options", _ASK_USAGE)
    return body


def body_for(call: Call, plan: Plan, model: str, context: Context, rules: ParamRules, *, ask_usage: bool) -> bytes:
    """The request encoded anew for the provider. Raises UnsupportedParams and InvalidRequest naming the field."""
    provider, wire, bridge = plan.provider, plan.wire, plan.bridge
    edited = _edited(call, rules, context)
    if bridge is not None:
        context.notes["want_usage"] = call.want_usage
        edited = _bridged(edited, bridge, rules, context)
    elif ask_usage:
        options = edited.get("stream_options")
        edited["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    edited["model"] = model
    if provider.prepares(edited, wire, model):
        provider.prepare(edited, wire, context)
    call.counters.encoded += 1
    return orjson.dumps(edited)


def _edited(call: Call, rules: ParamRules, context: Context) -> dict[str, JSON]:
    """A copy of the request with the rules applied; what they leave out is noted."""
    request = call.request
    edited = rules.apply(request)
    context.dropped.extend(path for path in rules.drop if path.replace("[", ".").split(".")[0] in request)
    for default, given in _LIMITS:
        if default in edited and default not in request and given in request:
            del edited[default]
    if "stream_options" in edited and not call.stream and "stream_options" not in request:
        del edited["stream_options"]
    extra = request.get("extra_body")
    if extra is not None:
        if not isinstance(extra, dict) or not _JUDGED.isdisjoint(extra):
            text = (
                "'extra_body' must be an object, and may not hold the model, what is said, or settings of the gateway."
            )
            raise InvalidRequest(text, param="extra_body")
        edited = {**extra, **edited}
    return edited


def _bridged(edited: dict[str, JSON], bridge: Bridge, rules: ParamRules, context: Context) -> dict[str, JSON]:
    """The request in the provider's API. What the bridge refuses and the rules allow is carried across as it is."""
    # With `drop_params` a bridge leaves out what it would refuse, so it is asked without.
    carried: dict[str, JSON] = {}
    dropping, context.drop_params = context.drop_params, False
    while name := _refused(edited, bridge, rules, context):
        carried[name] = edited.pop(name)
    context.drop_params = dropping
    return {**carried, **bridge.request(edited, context)}


def _refused(edited: Mapping[str, JSON], bridge: Bridge, rules: ParamRules, context: Context) -> str:
    """The first field that the bridge refuses although the rules allow it; empty when there is none."""
    if rules.allowed.isdisjoint(edited):
        return ""
    try:
        bridge.request(edited, context)
    except UnsupportedParams as error:
        name = error.param or ""
        return name if name in rules.allowed and name in edited else ""
    return ""


async def headers_for(call: Call, deployment: Deployment, own: RawHeaders) -> list[tuple[str, str]]:
    """All headers of the request. Raises UpstreamError (401) when the deployment has no credential and needs one."""
    provider = deployment.provider
    credentials = await provider.credentials()
    if not credentials and (missing := provider.lacks()):
        raise no_key(provider, deployment, missing)
    return list(provider.headers(own, call.headers, credentials).items())


def no_key(provider: Provider, deployment: Deployment, missing: str) -> UpstreamError:
    """The operator left the key out; nothing was sent."""
    text = f"The provider '{provider.name}' of the model '{deployment.model_name}' has no API key: {missing}."
    return UpstreamError(text, provider=provider.name, status=401, code="missing_api_key")


def deadlines_for(call: Call, deployment: Deployment, *, stream: bool) -> Deadlines:
    """The deployment's deadlines; a request's own `timeout` or `stream_timeout` can only shorten them.

    All attempts of a call share what is left of its total time. Raises InvalidRequest.
    """
    found = (deployment.stream_deadlines if stream else None) or deployment.deadlines
    asked = asked_timeout(call, stream=stream)
    if asked is not None:
        first, between = _sooner(found.first_byte_s, asked), _sooner(found.between_bytes_s, asked)
        total = found.total_s if stream else _sooner(found.total_s, asked)
        found = replace(found, first_byte_s=first, between_bytes_s=between, total_s=total)
    if call.due:
        left = max((call.due - call.runtime.clock()) / 1e9, 0.001)
        found = replace(found, first_byte_s=_sooner(found.first_byte_s, left), total_s=_sooner(found.total_s, left))
    return found


def asked_timeout(call: Call, *, stream: bool) -> float | None:
    """Seconds, by the request's body, else by LiteLLM's headers; None where it asks for none. Raises InvalidRequest."""
    request = call.request
    asked: JSON = request.get("stream_timeout" if stream and "stream_timeout" in request else "timeout")
    if asked is None:
        headers = call.headers
        if headers.isdisjoint(_TIMEOUTS):
            return None
        text = (headers.get("x-litellm-stream-timeout") if stream else None) or headers.get("x-litellm-timeout")
        if not text:
            return None
        try:
            asked = float(text)
        except ValueError:
            asked = text
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 < asked < math.inf:
        raise InvalidRequest("'timeout' must be a number of seconds above 0.", param="timeout")
    return asked


def _sooner(limit: float | None, asked: float) -> float:
    return asked if limit is None else min(limit, asked)
