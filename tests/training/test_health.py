import random
import statistics

import pytest

from training.health import ENOUGH, RISE, SPIKE, WINDOW, Health

NAN = float("nan")


def noisy(count, seed=0, mean=3.0, deviation=0.1):
    draw = random.Random(seed)
    return [draw.gauss(mean, deviation) for _ in range(count)]


def test_a_run_is_lost_by_default_at_the_first_bad_step():
    assert Health().look(10, [1.0, NAN, 1.0]) == ([11], [], [11])
    assert Health().look(10, [float("inf")]).lost == [10]


def test_bad_steps_end_a_run_when_so_many_come_in_a_row_across_intervals_and_restarts():
    health = Health(patience=3)
    assert health.look(0, [1.0, NAN, NAN, 1.0, NAN]) == ([1, 2, 4], [], [])
    again = Health(patience=3)
    again.set_state(health.get_state())
    for one in (health, again):
        assert one.look(5, [NAN, NAN, 1.0]).lost == [4, 5, 6]
        assert one.streak == []


def test_a_leap_is_found_and_noise_is_not():
    losses = noisy(1000)
    losses[500] = 3.0 + 2 * RISE * 3.0
    health, spikes = Health(), []
    for start in range(0, 1000, 50):
        spikes += health.look(start, losses[start : start + 50]).spikes
    assert spikes == [500]


def test_a_leap_is_told_by_median_and_deviation_of_the_window_alone():
    losses = [abs(loss) for loss in noisy(400, seed=1, deviation=2.0)]
    expected = []
    for i in range(ENOUGH, 400):
        before = losses[max(0, i - WINDOW) : i]
        middle = statistics.median(before)
        spread = 1.4826 * statistics.median(abs(x - middle) for x in before)
        if losses[i] > middle + max(SPIKE * spread, RISE * middle):
            expected.append(i)
    assert Health().look(0, losses).spikes == expected


@pytest.mark.parametrize("losses", [[1.0] * 20 + [50.0], [1e-3] * 60 + [1.2e-3]])
def test_early_steps_and_small_differences_are_no_leaps(losses):
    assert Health().look(0, losses).spikes == []


def test_falling_losses_are_never_leaps():
    assert Health().look(0, [10 * 0.99**i for i in range(500)]).spikes == []
