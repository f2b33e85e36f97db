"""`tianji-sidecar cache`: what the cache of a running sidecar did, and taking answers out. It asks the admin port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tianji_mw.errors import SetupError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(name="cache", help="The cache of a running sidecar.", no_args_is_help=True, rich_markup_mode=None)

AdminOption = Annotated[str, typer.Option("--admin-url", help="Admin port of the sidecar.")]
_DEFAULT = "http://127.0.0.1:4001"


@app.command()
def stats(admin_url: AdminOption = _DEFAULT) -> None:
    """Hits, and what they saved, by model and by key."""
    from rich.console import Console

    found = _ask("GET", admin_url, "/-/cache")
    console = Console()
    console.print(_tallies("model", {**found["by_model"], "all": found["total"]}))
    if found["by_key"]:
        console.print(_tallies("key", found["by_key"]))
    store = found["store"]
    figures = ", ".join(f"{name} {value}" for name, value in store.items() if name not in ("store", "trouble"))
    console.print(f"store {store['store']}: {figures}", markup=False)
    if store.get("trouble"):
        console.print(f"trouble: {store['trouble']}", markup=False)
    if (semantic := found["semantic"]) is not None:
        told = (
            f"{semantic['would_hit']} could have been given, {semantic['verified']} verified, {semantic['wrong']} wrong"
        )
        bound = f"error at most {semantic['error_at_most']:.1%}" if semantic["verified"] else "no error known yet"
        console.print(f"semantic ({semantic['mode']}): {semantic['calls']} calls, {told}, {bound}", markup=False)


def _tallies(title: str, found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title_justify="left")
    for name in (title, "hits", "of them semantic", "misses", "hit rate", "bytes", "tokens saved", "USD saved"):
        table.add_column(name, justify="left" if name == title else "right")
    for name, tally in found.items():
        rate = "-" if tally["hit_rate"] is None else f"{tally['hit_rate']:.1%}"
        table.add_row(
            name, str(tally["hits"]), str(tally["semantic_hits"]), str(tally["misses"]), rate, str(tally["bytes"]),
            str(tally["saved_tokens"]), f"{tally['saved_cost']:.4f}",
        )  # fmt: skip
    return table


@app.command()
def purge(
    admin_url: AdminOption = _DEFAULT,
    key: Annotated[list[str] | None, typer.Option(help="A cache key, as x-litellm-cache-key tells it.")] = None,
    model: Annotated[str, typer.Option(help="A public model name.")] = "",
    team: Annotated[str, typer.Option(help="A team's id.")] = "",
    organization: Annotated[str, typer.Option(help="An organisation's id.")] = "",
    key_alias: Annotated[str, typer.Option(help="The alias of a virtual key.")] = "",
    end_user: Annotated[str, typer.Option(help="An end user, with cache_scope: end_user.")] = "",
    namespace: Annotated[str, typer.Option(help="The namespace of requests.")] = "",
    tag: Annotated[str, typer.Option(help="A tag of the calls that were answered.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Everything of this cache.")] = False,
) -> None:
    """Take answers out: what meets every condition."""
    given = {
        "keys": key, "model_group": model, "organization_id": organization, "team_id": team, "key_alias": key_alias,
        "end_user": end_user, "namespace": namespace, "tag": tag,
    }  # fmt: skip
    wanted = {name: value for name, value in given.items() if value}
    if not wanted and not everything:
        raise SetupError("say what is to go, such as --model gpt-4o or --team red, or --all")
    if wanted and everything:
        raise SetupError("--all takes everything out; leave the conditions away, or leave --all away")
    print(
        f"{_ask('POST', admin_url, '/-/cache/purge', {'all': True} if everything else wanted)['deleted']} entries gone"
    )


@app.command()
def ping(admin_url: AdminOption = _DEFAULT) -> None:
    """Whether the store answers, and keeps what it is given."""
    found = _ask("GET", admin_url, "/-/cache/ping")
    print(f"{found['status']}: {found['cache_type']}" + (f", {found['error']}" if "error" in found else ""))
    if found["status"] != "healthy":
        raise typer.Exit(1)


def _ask(method: str, admin_url: str, path: str, body: Any = None) -> dict[str, Any]:
    import httpx

    try:
        answer = httpx.request(method, admin_url.rstrip("/") + path, json=body, timeout=60, trust_env=False)
        if answer.status_code == 404:
            raise SetupError("this sidecar has no cache; set litellm_settings.cache: true in its config")
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise SetupError(f"{admin_url}: no sidecar answers there ({type(error).__name__}); set --admin-url") from None
    if "error" in found and "status" not in found:
        raise SetupError(str(found["error"].get("message") if isinstance(found["error"], dict) else found["error"]))
    return found
