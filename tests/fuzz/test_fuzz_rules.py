"""Rules over parameter paths, beside a plain loop."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from errors import UserError
from training import rules

NAMES = st.sampled_from(["encoder", "layers", "0", "1", "10", "kernel", "bias", "a.b", "é"])
TREES = st.recursive(
    st.dictionaries(NAMES, st.integers(), min_size=1, max_size=3),
    lambda branches: st.dictionaries(NAMES, st.one_of(branches, st.integers()), min_size=1, max_size=3),
    max_leaves=12,
)
PARTS = st.sampled_from(
    [".*", "/", "encoder", "layers", "[0-9]+", "0", "1", "(kernel|bias)", "bias", "kernel", ".", "é"]
)
PATTERNS = st.one_of(st.just(".*"), st.lists(PARTS, max_size=5).map("".join))
RULES = st.lists(st.tuples(PATTERNS, st.integers()), max_size=4)


def leaves(tree, prefix: str = "") -> dict[str, int]:
    """path -> leaf, by a plain walk; JAX has the keys of a dict in their order."""
    found: dict[str, int] = {}
    for name in sorted(tree):
        branch, path = tree[name], f"{prefix}{name}"
        found |= leaves(branch, f"{path}/") if isinstance(branch, dict) else {path: branch}
    return found


@given(TREES, RULES)
def test_the_first_rule_that_matches_the_whole_path_decides(tree, table):
    flat = leaves(tree)
    decided = {path: next((value for pattern, value in table if re.fullmatch(pattern, path)), None) for path in flat}
    useless = any(not any(re.fullmatch(pattern, path) for path in flat) for pattern, _ in table)
    if useless or None in decided.values():
        with pytest.raises(UserError) as refused:
            rules.match(table, tree, "field")
        assert refused.value.field == "field" and len(str(refused.value).splitlines()) == 2
        return
    assert leaves(rules.match(table, tree, "field")) == decided


@given(TREES)
def test_every_leaf_is_mapped_with_its_path(tree):
    flat = leaves(tree)
    assert rules.paths(tree) == list(flat)
    mapped = rules.map_paths(lambda path, leaf: (path, leaf), tree)
    assert leaves(mapped) == {path: (path, leaf) for path, leaf in flat.items()}


@given(TREES, st.integers(1, 4))
def test_what_was_parted_is_joined_to_the_same_tree(tree, parts):
    def key_of(path: str) -> str:
        return str(sum(map(ord, path)) % parts)

    parted = rules.partition(tree, key_of)
    flat = leaves(tree)
    assert parted.keys() == {key_of(path) for path in flat}
    for key, part in parted.items():
        assert leaves(part) == {path: leaf for path, leaf in flat.items() if key_of(path) == key}
    assert rules.join(*parted.values()) == tree
    assert rules.join(*reversed(parted.values())) == tree


BROKEN = st.one_of(st.text(), st.text("()[]{}*+?\\|^$.-,0123456789aiLmsux<>=!:P#", max_size=12))
THINGS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)),
    lambda things: st.one_of(st.lists(things, max_size=3), st.dictionaries(st.text(max_size=2), things, max_size=2)),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of what a pattern may mean one day
@given(BROKEN)
@example("(?a)(?u)")
@example("a{99999999999999999999}")
@example("(" * 5_000 + ")" * 5_000)
def test_a_broken_pattern_is_refused_in_two_lines(pattern):
    try:
        rules.match(((pattern, 1), (".*", 0)), {"a": {"b": 1}}, "field")
    except UserError as error:
        assert error.field == "field" and len(str(error).splitlines()) == 2


@given(st.lists(THINGS, max_size=3), st.sampled_from([{}, {"a": {}}, {"a": 1}]))
@example([(".*", 1)], {})
def test_what_is_no_table_of_rules_is_refused(table, tree):
    try:
        rules.match(table, tree, "field")
    except UserError as error:
        assert error.field == "field" and len(str(error).splitlines()) == 2
