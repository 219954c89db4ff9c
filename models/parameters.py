"""Between Flax modules and plain nested dicts of arrays.

Outside of a module, parameters are plain dicts whose keys are all strings, so that a parameter has one name everywhere,
`encoder/layers/3/attention/query/kernel`: in rules, checkpoints, tables and imports. Checkpoints hold no Flax type.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

nnx.set_graph_mode(False)

Tree = dict[str, Any]
Builder = Callable[[nnx.Rngs], nnx.Module]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """The structure, the parameters and the model's other state (BatchNorm's statistics) of a module."""
    graphdef, params, model_state = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graphdef, _string_keys(nnx.to_pure_dict(params)), _string_keys(nnx.to_pure_dict(model_state))


def structure(build: Builder) -> tuple[nnx.GraphDef, Tree, Tree]:
    """As `split`, with shapes and dtypes in place of arrays: nothing is computed."""
    return split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def initialize(build: Builder, key: jax.Array) -> tuple[Tree, Tree]:
    """Fresh parameters and model state, drawn from `key`; jit it with shardings to draw them where they shall lie."""
    _, params, model_state = split(build(nnx.Rngs(params=key)))
    return params, model_state


def count(params: Tree) -> int:
    """How many numbers the tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def table(params: Tree) -> str:
    """The parameters as a Markdown table: path, shape, dtype, size."""
    lines = ["| parameter | shape | dtype | size |", "|---|---|---|---|"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        lines.append(f"| {name} | {list(leaf.shape)} | {leaf.dtype} | {leaf.size:,} |")
    return "\n".join([*lines, f"| **all** | | | {count(params):,} |"])


def _string_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {str(key): _string_keys(value) for key, value in tree.items()}


def functional(graphdef: nnx.GraphDef, loss: Callable[..., Any]) -> Callable[..., tuple[Any, Tree]]:
    """`loss(model, batch, key)` as a pure function `(params, model_state, batch, key) -> (its value, model_state)`."""

    def forward(params: Tree, model_state: Tree, batch: Any, key: jax.Array | None) -> tuple[Any, Tree]:
        model = nnx.merge(graphdef, params, model_state)
        value = loss(model, batch, key)
        return value, _string_keys(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return forward
