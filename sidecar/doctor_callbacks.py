"""`tianji-sidecar doctor` for callbacks: sends one test record to each destination, and tells what came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tianji_mw.errors import SetupError
from tianji_mw.records import NotDelivered
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.callbacks.destination import Destination
    from tianji_mw.stack import Stack

Finding = tuple[bool | None, str]


def examine_callbacks(stack: Stack) -> Iterator[Finding]:
    """One finding for each destination of the stack."""
    from tianji_mw.callbacks.middleware import Callbacks
    from tianji_mw.driver import inner_layers

    for layer in inner_layers(stack.app):
        if isinstance(layer, Callbacks):
            yield from asyncio.run(_try_all(layer.destinations))


async def _try_all(destinations: list[Destination]) -> list[Finding]:
    async with Runtime() as runtime:
        return list(await asyncio.gather(*(_try(one, runtime) for one in destinations)))


async def _try(destination: Destination, runtime: Runtime) -> Finding:
    from tianji_mw.callbacks.record.sample import sample_record

    callback, name = destination.callback, destination.name
    record = sample_record(runtime, "call" if destination.takes_calls else "alert")
    began = time.monotonic()
    try:
        await callback.start(runtime)
        async with asyncio.timeout(callback.timeout_s):
            await destination.write([record])
    except SetupError as error:
        return False, f"callback {name}: {error.message}"
    except NotDelivered as problem:
        return False, f"callback {name}: {problem.message}"
    except TimeoutError:
        return False, f"callback {name}: no answer within {callback.timeout_s:g} s"
    except Exception as error:  # noqa: BLE001 - plugin failsafe: the other destinations are tried as well
        return False, f"callback {name}: {type(error).__name__}: {error}"
    finally:
        await callback.aclose()
    return True, f"callback {name}: took the test record {record.id} in {(time.monotonic() - began) * 1000:.0f} ms"
