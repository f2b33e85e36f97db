"""`tianji-sidecar`: run, check, explain, doctor. A command imports what it needs, when it runs: start stays fast."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.cache_cli import app as cache_app
from sidecar.options import RunOptions
from tianji_mw.errors import SetupError

app = typer.Typer(
    name="tianji-sidecar",
    help="An LLM gateway as a sidecar.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="CONFIG_FILE_PATH", help="LiteLLM-style YAML. Without it: an embedded demo."),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Keys without effect are errors.")]
UpstreamOption = Annotated[
    str, typer.Option("--app-upstream", help="Ingress mode: pass everything to this app, e.g. http://127.0.0.1:8000.")
]


@app.command()
def run(
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Port to listen on.")] = 4000,
    admin_host: Annotated[str, typer.Option(help="Address of the admin port.")] = "127.0.0.1",
    admin_port: Annotated[int, typer.Option(help="Admin port: metrics and detail; 0 switches it off.")] = 4001,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Processes.")] = 1,
    app_upstream: UpstreamOption = "",
    strict: StrictOption = False,
    allow_unresolved: Annotated[
        bool, typer.Option("--allow-unresolved", help="Start although secrets cannot be had yet; they come later.")
    ] = False,
    open_: Annotated[bool, typer.Option("--i-know-this-is-open", help="Listen beyond loopback without a key.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No banner.")] = False,
) -> None:
    """Serve."""
    from sidecar.app import apps_of, refuse_open, server_config, settings_of, share_metrics
    from sidecar.banner import banner, notices
    from sidecar.server import serve

    options = _options(
        config=config, host=host, port=port, admin_host=admin_host, admin_port=admin_port, workers=workers,
        app_upstream=app_upstream, strict=strict, open=open_, quiet=quiet, allow_unresolved=allow_unresolved,
    )  # fmt: skip
    settings = settings_of(options)
    refuse_open(settings, options)
    for line in notices(settings, options.workers):
        print(line, file=sys.stderr)
    share_metrics(options)
    server = server_config(settings, options)
    if not quiet:
        print(banner(settings, options), flush=True)
    # One worker is this process; several read the config themselves, and so hold secrets of their own.
    serve(partial(apps_of, options, settings if options.workers == 1 else None), server)


@app.command()
def check(
    config: ConfigOption = None,
    app_upstream: UpstreamOption = "",
    strict: StrictOption = False,
    resolve: Annotated[bool, typer.Option("--resolve", help="Ask the secret managers for every secret.")] = False,
) -> None:
    """Read the config and build everything, without serving. Exit status 1 when something is wrong."""
    from sidecar.app import settings_of, stack_of
    from sidecar.banner import notices

    options = _options(config=config, app_upstream=app_upstream)
    settings = settings_of(options, resolve=resolve)
    found = notices(settings)
    for line in found:
        print(line)
    stack_of(settings, options)
    if found and strict:
        raise typer.Exit(1)
    without = f", {len(found)} keys without effect" if found else ""
    count = len(list(settings.resolver.entries)) if settings.resolver else 0
    secrets = f", {count} secrets {'resolved' if resolve else 'not asked for (--resolve asks)'}" if count else ""
    print(f"ok: {len(settings.model_list)} deployments{secrets}{without}")


@app.command()
def explain(
    config: ConfigOption = None,
    app_upstream: UpstreamOption = "",
    model: Annotated[str, typer.Option(help="Say who would serve a call of this model, and why.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag of that call; may be given again.")] = None,
    team: Annotated[str, typer.Option(help="The team of that call.")] = "",
    url: Annotated[
        str, typer.Option(help="Admin port of a running sidecar: ask its live state, such as http://127.0.0.1:4001.")
    ] = "",
) -> None:
    """Print the live stack, outermost first, and where each model goes; with --model, how that one is routed."""
    from sidecar.app import settings_of, stack_of
    from sidecar.banner import deployment_lines, stack_lines

    options = _options(config=config, app_upstream=app_upstream)
    if model:
        from sidecar.routing_cli import explained

        print("\n".join(explained(options, model, tag or [], team, url)))
        return
    if url or tag or team:
        raise SetupError("--url, --tag and --team are about one model; name it with --model")
    settings = settings_of(options, resolve=False)
    stack = stack_of(settings, options)
    print("\n".join(["Stack, outermost first:", *stack_lines(stack), "", "Models:", *deployment_lines(stack)]))


@app.command(name="config")
def config_show(config: ConfigOption = None) -> None:
    """Print the config as it was understood: canonical names, defaults filled in, secrets masked."""
    import yaml

    from sidecar.app import settings_of

    print(
        yaml.safe_dump(
            settings_of(_options(config=config), resolve=False).normalised(), sort_keys=False, allow_unicode=True
        ),
        end="",
    )


@app.command()
def doctor(
    config: ConfigOption = None,
    app_upstream: UpstreamOption = "",
    url: Annotated[str, typer.Option(help="Send the table of malformed requests to this HTTP server.")] = "",
) -> None:
    """Look for what will hurt in production: limits, keys, providers that cannot be reached, a lax HTTP server."""
    from sidecar.doctor import examine

    lines, healthy = examine(_options(config=config, app_upstream=app_upstream), url)
    print("\n".join(lines))
    if not healthy:
        raise typer.Exit(1)


def _options(**values: Any) -> RunOptions:
    from pydantic import ValidationError

    try:
        return RunOptions(**values)
    except ValidationError as error:
        found = error.errors()[0]
        raise SetupError(f"--{'-'.join(str(p) for p in found['loc']).replace('_', '-')}: {found['msg']}") from None


app.add_typer(cache_app)


def main() -> None:
    """Entry point of the console script. Errors of the set-up are sentences, not tracebacks."""
    try:
        app()
    except SetupError as error:
        from sidecar.app import problems_of

        for line in problems_of(error):
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
