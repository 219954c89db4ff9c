"""Between Flax modules and plain nested dicts of arrays.

Outside of a module, parameters are plain dicts whose keys are all strings, so that a parameter has one name everywhere,
`encoder/layers/3/attention/query/kernel`: in rules, checkpoints, tables and imports. Checkpoints hold no Flax type.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from errors import UserError
from models.convolution import BatchNorm
from models.lora import Lora

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


def functional(
    graphdef: nnx.GraphDef,
    loss: Callable[..., Any],
    lora: Lora | None = None,
    trained: Collection[str] | None = None,
) -> Callable[..., tuple[Any, Tree]]:
    """`loss(model, batch, key)` as a pure function `(params, model_state, batch, key) -> (its value, model_state)`.

    Args:
        trained: the paths of the parameters that are; all without. A BatchNorm none of whose own are keeps its
            statistics and goes by them, in training as in an evaluation.
    """

    def forward(params: Tree, model_state: Tree, batch: Any, key: jax.Array | None) -> tuple[Any, Tree]:
        model = nnx.merge(graphdef, lora.merge(params) if lora else params, model_state)
        if trained is not None and model_state:
            own = {path.rpartition("/")[0] for path in trained}
            for path, module in nnx.iter_modules(model):
                if isinstance(module, BatchNorm):
                    module.frozen = "/".join(map(str, path)) not in own
        value = loss(model, batch, key)
        return value, _string_keys(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return forward


def flatten(params: Tree) -> dict[str, Any]:
    """The leaves by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


class Account(NamedTuple):
    """What becomes of weights that come from elsewhere: paths that are loaded, that begin anew, that find no place."""

    loaded: list[str]
    new: list[str]
    left_over: list[str]


def account(params: Tree, model_state: Tree, weights: Mapping[str, Any], field: str) -> Account:
    """Which of `weights`, by path, have a place among the parameters or the model's other state; shapes will do.

    Raises:
        UserError: a weight has another shape than its place, or none has one.
    """
    places = flatten(params) | flatten(model_state)
    loaded = [path for path in places if path in weights]
    for path in loaded:
        if places[path].shape != weights[path].shape:
            there, here = list(weights[path].shape), list(places[path].shape)
            raise UserError(field, f"{path} is {there} there and {here} in this run", "Make the configs agree.")
    if not loaded:
        raise UserError(field, "holds no parameter of this model", "Choose another model or other weights.")
    new = [path for path in places if path not in weights]
    return Account(loaded, new, [path for path in weights if path not in places])


def graft(params: Tree, weights: Mapping[str, Any]) -> Tree:
    """The tree with those leaves replaced that `weights` has, by path."""
    paths = list(flatten(params))
    leaves = [weights.get(path, leaf) for path, leaf in zip(paths, jax.tree.leaves(params), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
