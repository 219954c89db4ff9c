"""The small parts against what JAX computes by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import layers

KEY = jax.random.key(0)


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, hash(shape) % 1000), shape)


def assert_same_function(ours, reference, *arguments):
    """The same values, and the same gradient for every argument."""
    np.testing.assert_allclose(ours(*arguments), reference(*arguments), rtol=1e-5, atol=1e-6)
    weights = normal(*reference(*arguments).shape)
    numbers = tuple(range(len(arguments)))
    gradients = [jax.grad(lambda *a, f=f: (f(*a) * weights).sum(), numbers)(*arguments) for f in (ours, reference)]
    for mine, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_hand_written_gradients_are_those_of_automatic_differentiation():
    x = normal(3, 5, 8)
    assert_same_function(layers.dense, lambda x, k, b: x @ k + b, x, normal(8, 6), normal(6))
    assert_same_function(layers.add_bias, lambda x, b: x + b, x, normal(8))
    assert_same_function(layers.scale_by, lambda x, s: x * s, x, normal(8))
    assert_same_function(layers.gelu, lambda x: jax.nn.gelu(x, approximate=False), 3 * x)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    x = jnp.ones((500, 400))
    dropped = np.asarray(layers.dropout(x, rate, KEY))
    assert (dropped == 0).mean() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / x.size) ** 0.5)
    np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - rate), rtol=1e-6)


def test_the_gradient_of_dropout_has_the_mask_of_its_value():
    x = normal(64, 64)
    value, back = jax.vjp(lambda x: layers.dropout(x, 0.3, KEY), x)
    (gradient,) = back(jnp.ones_like(x))
    np.testing.assert_array_equal(np.asarray(value) == 0, np.asarray(gradient) == 0)


def test_dropout_masks_of_different_keys_and_neighbours_are_unrelated():
    x = jnp.ones((256, 256))
    masks = [np.asarray(layers.dropout(x, 0.5, jax.random.key(seed)) > 0, np.float64) for seed in range(4)]
    pairs = [(masks[0], other) for other in masks[1:]]
    pairs += [(masks[0], np.roll(masks[0], shift, axis)) for shift in (1, 2, 8) for axis in (0, 1)]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / 256


def test_dropout_is_the_same_function_inside_a_compiled_step_and_outside():
    x = normal(32, 16)
    compiled = jax.jit(lambda x, key: layers.dropout(x, 0.2, key))
    np.testing.assert_array_equal(compiled(x, KEY), layers.dropout(x, 0.2, KEY))


def test_a_layer_norm_has_mean_0_and_variance_1_also_far_from_zero():
    x = 100 + normal(4, 64)
    norm = layers.LayerNorm(64, epsilon=1e-12)
    y = np.asarray(norm(x))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_sinusoids_follow_the_formula_of_the_paper():
    table = layers.sinusoidal_positions(50, 8)
    for position in (0, 1, 17, 49):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert table[position, i] == pytest.approx(np.sin(angle), abs=1e-5)
            assert table[position, 4 + i] == pytest.approx(np.cos(angle), abs=1e-5)


def test_rotation_keeps_lengths_and_turns_by_the_formula():
    x = normal(1, 1, 3, 4)
    positions = jnp.array([[0, 1, 5]])
    turned = np.asarray(layers.rotate(x, positions))
    np.testing.assert_allclose((turned**2).sum(-1), (np.asarray(x) ** 2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(turned[0, 0, 0], x[0, 0, 0], rtol=1e-6)
    for place, position in ((1, 1), (2, 5)):
        for i in range(2):
            angle = position / 10_000 ** (2 * i / 4)
            a, b = x[0, 0, place, i], x[0, 0, place, i + 2]
            assert turned[0, 0, place, i] == pytest.approx(float(a * np.cos(angle) - b * np.sin(angle)), abs=1e-5)
            assert turned[0, 0, place, i + 2] == pytest.approx(float(b * np.cos(angle) + a * np.sin(angle)), abs=1e-5)
