import pytest

from errors import UserError
from training import rules

TREE = {"encoder": {"layers": {"0": {"kernel": 1, "bias": 2}, "10": {"kernel": 3}}}, "head": {"bias": 4}}


def test_paths_join_the_keys_with_slashes():
    assert rules.paths(TREE) == [
        "encoder/layers/0/bias",
        "encoder/layers/0/kernel",
        "encoder/layers/10/kernel",
        "head/bias",
    ]


def test_the_first_rule_that_matches_the_whole_path_decides():
    matched = rules.match((("encoder/layers/0/.*", "a"), (".*/bias", "b"), (".*", "c")), TREE, "field")
    assert matched == {
        "encoder": {"layers": {"0": {"kernel": "a", "bias": "a"}, "10": {"kernel": "c"}}},
        "head": {"bias": "b"},
    }


def test_a_pattern_must_match_the_path_from_end_to_end():
    assert rules.match((("encoder/layers/1", 1), (".*", 0)), {"encoder": {"layers": {"1": 0, "10": 0}}}, "f") == {
        "encoder": {"layers": {"1": 1, "10": 0}}
    }


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ((("nothing", 1), (".*", 0)), "matches no parameter"),
        (((".*/bias", 1),), "covers"),
        ((("(", 1),), "no regular expression"),
        (("x",), "'x'"),
        (((".*", 1, 2),), "(('.*', 1, 2)"[1:]),
        (((3, 1),), "(3, 1)"),
    ],
)
def test_a_useless_rule_an_uncovered_parameter_or_another_shape_is_an_error(table, said):
    with pytest.raises(UserError) as error:
        rules.match(table, TREE, "config.optimizer.decay_rules")
    assert said in str(error.value) and "config.optimizer.decay_rules" in str(error.value)
