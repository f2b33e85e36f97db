"""What tokens cost by the config: `input_cost_per_token`, `output_cost_per_token`. It does not account for spend."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from tianji_mw.routing.base import pattern

if TYPE_CHECKING:
    from tianji_mw.apis.base import Usage
    from tianji_mw.config.blocks import Deployment
    from tianji_mw.config.settings import Settings

_NOTHING = (0.0, 0.0)


def price_of(settings: Settings) -> Callable[[str, Usage], float] | None:
    """US dollars of a usage by public model name; None where the config has no prices.

    Of several deployments of one name the cheapest counts: what was saved is never told too high.
    """
    prices: dict[str, tuple[float, float]] = {}
    for entry in settings.model_list:
        found = _prices(entry)
        if found is not None and found < prices.get(entry.model_name, (float("inf"), 0.0)):
            prices[entry.model_name] = found
    if not prices:
        return None
    aliases = {name: alias.model for name, alias in settings.router_settings.model_group_alias.items()}
    names = {entry.model_name for entry in settings.model_list}
    wild = sorted((name for name in names if "*" in name), key=lambda name: (-len(name.replace("*", "")), name))
    patterns = [(pattern(name), prices.get(name, _NOTHING)) for name in wild]

    @lru_cache(maxsize=1024)
    def per_token(model: str) -> tuple[float, float]:
        name = aliases.get(model, model)
        if name in names:
            return prices.get(name, _NOTHING)
        return next((found for compiled, found in patterns if compiled.fullmatch(name)), _NOTHING)

    def price(model: str, usage: Usage) -> float:
        read, written = per_token(model[:512])
        return read * usage.input_tokens + written * usage.output_tokens

    return price


def _prices(entry: Deployment) -> tuple[float, float] | None:
    params, info = entry.params, entry.model_info
    read = params.input_cost_per_token if params.input_cost_per_token is not None else info.input_cost_per_token
    written = params.output_cost_per_token if params.output_cost_per_token is not None else info.output_cost_per_token
    return None if read is None and written is None else (read or 0.0, written or 0.0)
