"""LoRA (Hu et al. 2021, arXiv:2106.09685): a kernel W is used as W + (alpha / rank) · A B, A and B are trained.

The adapters are a tree of their own beside the others, `lora/PATH/OF/THE/kernel/{a,b}`, so that rules, checkpoints and
tables name them as they name any parameter. They are merged into the kernels before a module is made.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from errors import UserError

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels have adapters, and of what size.

    Attributes:
        rank: columns of A; 0 for no adapters at all.
        alpha: the product is scaled by alpha / rank.
        kernels: a regular expression that the whole path of such a kernel matches.
    """

    rank: int = 0
    alpha: float = 16.0
    kernels: str = "(encoder|decoder)/layers/[0-9]+/attention/(query|value)/kernel"

    def add(self, params: Tree, key: jax.Array) -> Tree:
        """The tree with fresh adapters beside it: A is drawn, B is 0, so that at first nothing changes.

        Raises:
            UserError: `kernels` is no regular expression, or matches no kernel.
        """
        if not self.rank:
            return params
        try:
            pattern = re.compile(self.kernels)
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise UserError("config.lora.kernels", f"{self.kernels!r} ({error})", "Mend the pattern.") from error
        found: Tree = {}
        for number, (path, kernel) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if not pattern.fullmatch(name):
                continue
            if not name.endswith("/kernel"):
                raise UserError("config.lora.kernels", f"matches {name}, no kernel", "End the pattern with /kernel.")
            inputs, outputs = kernel.shape
            branch = found
            for part in name.split("/"):
                branch = branch.setdefault(part, {})
            draw = jax.random.normal(jax.random.fold_in(key, number), (inputs, self.rank), jnp.float32)
            branch["a"], branch["b"] = draw * inputs**-0.5, jnp.zeros((self.rank, outputs), jnp.float32)
        if not found:
            mend = "Name kernels by their path: encoder/layers/.*/attention/(query|value)/kernel"
            raise UserError("config.lora.kernels", f"{self.kernels!r} matches no kernel", mend)
        return {**params, "lora": found}

    def merge(self, params: Tree) -> Tree:
        """The tree without adapters, their products added to the kernels."""
        if not self.rank:
            return params
        rest = {name: tree for name, tree in params.items() if name != "lora"}
        return self._merge(rest, params["lora"])

    def _merge(self, tree: Any, adapters: Tree) -> Any:
        if "a" in adapters:
            return tree + (self.alpha / self.rank) * (adapters["a"] @ adapters["b"])
        merged = {name: self._merge(tree[name], branch) for name, branch in adapters.items()}
        return {**tree, **merged}
