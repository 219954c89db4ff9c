"""How every benchmark tells what it measured: JSON for programs, one Markdown table for people."""

import json
from collections.abc import Iterable
from typing import Any

import jax


def tell(benchmark: str, results: Iterable[dict[str, Any]]) -> None:
    """Prints each result as it comes, a JSON object on a line with device and JAX's version, then a table of them all.

    A column of the table is a result, a row one of its entries.
    """
    told = []
    for result in results:
        told.append({**result, "device": jax.devices()[0].device_kind, "jax": jax.__version__})
        print(json.dumps({"benchmark": benchmark, **told[-1]}), flush=True)
    names = dict.fromkeys(name for result in told for name in result)
    rows = [[name, *(_cell(result.get(name, "")) for result in told)] for name in names]
    rows = [[benchmark, *([""] * len(told))], ["---"] * (1 + len(told)), *rows]
    print("\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "–".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
