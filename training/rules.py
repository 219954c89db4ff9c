"""First-match rules over parameter paths: the one language in which freezing, rates, decay and sharding are said.

A rule is `(pattern, value)`; the pattern must match the whole path (`re.fullmatch`), and the first that does decides.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from errors import UserError

Rules = Sequence[tuple[str, Any]]


def paths(tree: Any) -> list[str]:
    """The path of every leaf, `encoder/layers/0/attention/query/kernel`, in the tree's own order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def match(rules: Rules, tree: Any, field: str) -> Any:
    """A tree of the same structure with each leaf's value.

    Raises:
        UserError: a rule has another shape, a pattern is not a regular expression or matches no parameter, or a
            parameter is matched by none. A rule that is only shadowed by earlier ones is allowed.
    """
    compiled = [_compile(rule, field) for rule in rules]
    names = paths(tree)
    for pattern, _ in compiled:
        if not any(pattern.fullmatch(name) for name in names):
            raise UserError(
                field, f"{pattern.pattern!r} matches no parameter", f"The parameters are {_examples(names)}."
            )
    values = []
    for name in names:
        decided = [value for pattern, value in compiled if pattern.fullmatch(name)]
        if not decided:
            raise UserError(field, f"no rule covers the parameter {name}", "End the rules with one for '.*'.")
        values.append(decided[0])
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def first_match(rules: Rules, path: str) -> Any:
    """The value of the first rule of a built-in table that matches the path; the last one must match all."""
    return next(value for pattern, value in rules if re.fullmatch(pattern, path))


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`function(path, leaf)` in the place of every leaf."""
    return jax.tree.unflatten(
        jax.tree.structure(tree), [function(*pair) for pair in zip(paths(tree), jax.tree.leaves(tree), strict=True)]
    )


def partition(tree: dict[str, Any], key_of: Callable[[str], str]) -> dict[str, Any]:
    """One tree of nested dicts for each key that `key_of(path)` gives, without the branches it has no leaf in."""
    parts: dict[str, Any] = {}
    for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True):
        *branches, last = path.split("/")
        branch = parts.setdefault(key_of(path), {})
        for name in branches:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return parts


def join(*trees: dict[str, Any]) -> dict[str, Any]:
    """The trees that `partition` gave, as one again."""
    joined: dict[str, Any] = {}
    for tree in trees:
        for name, branch in tree.items():
            joined[name] = join(joined.get(name, {}), branch) if isinstance(branch, dict) else branch
    return joined


def _compile(rule: Any, field: str) -> tuple[re.Pattern[str], Any]:
    if not isinstance(rule, Sequence) or isinstance(rule, str) or len(rule) != 2 or not isinstance(rule[0], str):
        raise UserError(field, repr(rule), "Give pairs: (('.*/bias', 0.0), ('.*', 1.0)).")
    try:
        return re.compile(rule[0]), rule[1]
    except (re.error, ValueError, OverflowError, RecursionError) as error:  # flags at odds, a{99…9}, thousands of (
        raise UserError(field, f"{rule[0]!r} is no regular expression ({error})", "Mend the pattern.") from error


def _examples(names: list[str]) -> str:
    shown = [names[i] for i in sorted({0, len(names) // 2, len(names) - 1})] if names else ["none"]
    return ", ".join(shown) + (" …" if len(names) > 3 else "")
