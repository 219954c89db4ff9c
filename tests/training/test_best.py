import pytest

from errors import UserError
from training.best import Best


def follow(metric, values, patience=0):
    best = Best(metric, patience)
    return best, [best.update(step, {metric: value}) for step, value in enumerate(values)]


def test_higher_is_better_but_for_losses_and_errors():
    best, improved = follow("accuracy", [0.5, 0.4, 0.6, 0.6])
    assert (best.step, best.value, best.waited, improved) == (2, 0.6, 1, [True, False, True, False])
    best, _ = follow("loss", [0.5, 0.4, 0.6])
    assert (best.step, best.value) == (1, 0.4)


def test_what_is_not_a_number_is_never_the_best():
    best, improved = follow("f1", [float("nan"), 0.1, float("inf")])
    assert best.step == 1 and improved == [False, True, False]


def test_patience_counts_evaluations_without_a_better_one():
    best, _ = follow("accuracy", [0.5, 0.6, 0.5, 0.5], patience=3)
    assert not best.exhausted
    best.update(4, {"accuracy": 0.6})
    assert best.exhausted
    assert not follow("accuracy", [0.5, 0.4, 0.3])[0].exhausted, "no patience, no end"


def test_its_state_goes_on_where_it_was():
    best, _ = follow("accuracy", [0.5, 0.6, 0.5], patience=2)
    other = Best("accuracy", 2)
    other.set_state(best.get_state())
    assert other == best


def test_a_metric_that_no_evaluation_gives_is_refused():
    with pytest.raises(UserError, match="loss, accuracy"):
        Best("acuracy").check(["loss", "accuracy"])
    with pytest.raises(UserError, match="patience"):
        Best("", 3).check(["loss"])
    Best("loss", 3).check(["loss"])
