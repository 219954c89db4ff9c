import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from errors import UserError
from training.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule

PARAMS = {"layer": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "bias": jnp.array([0.5, -0.5, 1.0, 2.0])}}
RULES = ((".*/bias", 0), (".*", 1))
SETTINGS = {"b1": 0.9, "b2": 0.95, "epsilon": 1e-7, "decay_rules": RULES}
RATE = 0.01


def gradients(step: int) -> dict:
    key = jax.random.key(step)
    return jax.tree.map(lambda p: jax.random.normal(jax.random.fold_in(key, p.size), p.shape), PARAMS)


def descend(optimizer, rate, steps=5):
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        directions, state = optimizer.update(gradients(step), state, params)
        params = jax.tree.map(lambda p, d: p - rate * d, params, directions)
    return params


def descend_optax(optimizer, steps=5):
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


MASK = {"layer": {"kernel": True, "bias": False}}
L2 = optax.add_decayed_weights(0.1, MASK)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adamw", lambda: optax.adamw(RATE, 0.9, 0.95, 1e-7, weight_decay=0.1, mask=MASK)),
        ("lion", lambda: optax.lion(RATE, 0.9, 0.95, weight_decay=0.1, mask=MASK)),
        ("lamb", lambda: optax.lamb(RATE, 0.9, 0.95, 1e-7, weight_decay=0.1, mask=MASK)),
        ("sgd", lambda: optax.chain(L2, optax.sgd(RATE, momentum=0.9))),
        ("adam", lambda: optax.chain(L2, optax.adam(RATE, 0.9, 0.95, 1e-7))),
        ("rmsprop", lambda: optax.chain(L2, optax.rmsprop(RATE, 0.95, 1e-7))),
    ],
)
def test_each_optimizer_walks_as_optax_alone_does(name, reference):
    ours = descend(make_optimizer(name, PARAMS, weight_decay=0.1, **SETTINGS), RATE)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(descend_optax(reference())), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_brings_a_quadratic_down(name):
    optimizer = make_optimizer(name, PARAMS, weight_decay=0.0, **SETTINGS)

    def loss(params):
        return sum(jnp.square(p - 0.3).sum() for p in jax.tree.leaves(params))

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(50):
        directions, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(lambda p, d: p - 0.02 * d, params, directions)
    assert loss(params) < 0.7 * loss(PARAMS)


def test_what_the_rules_spare_is_not_decayed():
    optimizer = make_optimizer("adamw", PARAMS, weight_decay=0.5, **SETTINGS)
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    directions, _ = optimizer.update(nothing, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(directions["layer"]["bias"], 0)
    np.testing.assert_allclose(directions["layer"]["kernel"], 0.5 * PARAMS["layer"]["kernel"], rtol=1e-6)


def test_a_decay_rule_that_is_neither_0_nor_1_is_an_error():
    with pytest.raises(UserError, match="decay_rules"):
        make_optimizer("adamw", PARAMS, weight_decay=0.1, **(SETTINGS | {"decay_rules": ((".*", 0.5),)}))


def at(name: str, step: int, **settings) -> float:
    values = {"learning_rate": 2.0, "warmup_steps": 10, "steps": 110, "final_share": 0.1} | settings
    return float(make_schedule(name, **values)(jnp.asarray(step)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_warm_up_is_linear_and_does_not_start_at_zero(name):
    assert [round(at(name, step), 5) for step in (0, 4, 9)] == [0.2, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [
        ("constant", 2.0, 2.0),
        ("linear", 2.0 * 0.55, 0.2),
        ("cosine", 2.0 * 0.55, 0.2),
        ("exponential", 2.0 * 0.1**0.5, 0.2),
        ("rsqrt", 2.0 * (10 / 61) ** 0.5, 2.0 * (10 / 111) ** 0.5),
    ],
)
def test_each_schedule_passes_its_middle_and_its_end(name, middle, end):
    assert at(name, 60) == pytest.approx(middle, rel=1e-5)
    assert at(name, 110) == pytest.approx(end, rel=1e-5)


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    assert at("linear", 0, warmup_steps=0) == pytest.approx(2.0)
