"""Attention of long rows in blocks: what the whole square gives, in memory that does not grow with it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention
from models.attention import Sight, attend, mix, probabilities
from models.layers import dropout


@pytest.fixture
def short(monkeypatch):
    """Rows of more than 8 places count as long, and 6 ask at once."""
    monkeypatch.setattr(attention, "LONGEST", 8)
    monkeypatch.setattr(attention, "BLOCK", 6)


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def segments(rows: int, length: int) -> np.ndarray:
    """Packed rows: three documents of random lengths, and padding behind them."""
    draw = np.random.default_rng(1)
    return np.stack([np.concatenate([np.sort(draw.integers(1, 4, length - 2)), [0, 0]]) for _ in range(rows)])


@pytest.mark.parametrize("causal, length", [*itertools.product((False, True), (12, 20))])
def test_blocks_give_the_numbers_and_gradients_of_a_loop_over_places(short, causal, length):
    queries, keys, values = drawn(2, 3, length, 4), drawn(2, 3, 4, length, seed=1), drawn(2, 3, length, 4, seed=2)
    documents = segments(2, length)
    sight = Sight(jnp.asarray(documents), jnp.asarray(documents), jnp.arange(length)[None] if causal else None)

    def loop(queries, keys, values):
        rows = []
        for row in range(2):
            seen = []
            for place in range(length):
                alike = np.flatnonzero(documents[row] == documents[row, place])
                alike = alike[alike <= place] if causal else alike
                scores = jnp.einsum("hd,hdk->hk", queries[row, :, place], keys[row][:, :, alike])
                weights = jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True)
                seen.append(jnp.einsum("hk,hkd->hd", weights, values[row][:, alike]))
            rows.append(jnp.stack(seen, 1))
        return jnp.stack(rows)

    def blocks(queries, keys, values):
        return attend(queries, keys, values, sight, 0.1, None)

    weights, given = drawn(2, 3, length, 4, seed=3), (queries, keys, values)
    np.testing.assert_allclose(jax.jit(blocks)(*given), loop(*given), atol=2e-6)
    ours = jax.jit(jax.grad(lambda *given: (blocks(*given) * weights).sum(), (0, 1, 2)))(*given)
    expected = jax.grad(lambda *given: (loop(*given) * weights).sum(), (0, 1, 2))(*given)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_leaks_from_another_document_or_from_behind_into_a_long_row(short, causal):
    documents = segments(2, 20)
    sight = Sight(jnp.asarray(documents), jnp.asarray(documents), jnp.arange(20)[None] if causal else None)
    queries, keys, values = drawn(2, 3, 20, 4), drawn(2, 3, 4, 20, seed=1), drawn(2, 3, 20, 4, seed=2)

    def of_keys(keys, values):
        return attend(queries, keys, values, sight, 0.0, None).sum((1, 3))  # [rows, asked]

    by_keys, by_values = jax.jacobian(of_keys, (0, 1))(keys, values)
    # How much each place is moved by each: [row, asked, row of the keys, key].
    moved = np.abs(by_keys).sum((3, 4)) + np.abs(by_values).sum((3, 5))
    seen = documents[:, :, None] == documents[:, None, :]
    if causal:
        seen &= np.tril(np.ones((20, 20), bool))
    allowed = np.zeros_like(moved, dtype=bool)
    for row in range(2):
        allowed[row, :, row] = seen[row]
    assert (moved[~allowed] == 0).all() and (moved[allowed] > 0).all()


def test_dropout_in_blocks_has_its_rate_its_scale_its_seed_and_the_same_mask_on_the_way_back(short):
    length, rate = 60, 0.25
    queries, keys, values = jnp.zeros((8, 2, length, 4)), jnp.zeros((8, 2, 4, length)), jnp.eye(length)[None, None]
    values = jnp.broadcast_to(values, (8, 2, length, length))  # so that what is seen are the probabilities themselves
    ones = jnp.ones((8, length), int)

    def seen(values, seed):
        return attend(queries, keys, values, Sight(ones, ones), rate, jax.random.key(seed))

    looks = np.asarray(seen(values, 1))
    assert np.allclose(looks[looks > 0], 1 / length / (1 - rate)) and abs((looks == 0).mean() - rate) < 0.01
    np.testing.assert_array_equal(looks, seen(values, 1))
    assert (looks != np.asarray(seen(values, 2))).mean() > 0.3
    for one, other in itertools.combinations(range(0, length, attention.BLOCK), 2):  # no two blocks have one mask
        assert (looks[:, :, one : one + 6] != looks[:, :, other : other + 6]).mean() > 0.3
    gradient = jax.grad(lambda values: seen(values, 1)[0, 0, :, 0].sum())(values)[0, 0, :, 0]
    np.testing.assert_allclose(gradient, looks[0, 0].sum(0), rtol=1e-5)


def test_short_rows_and_few_places_are_taken_whole():
    queries, keys, values = drawn(1, 1, 20, 4), drawn(1, 1, 4, 20, seed=1), drawn(1, 1, 20, 4, seed=2)
    ones, key = jnp.ones((1, 20), int), jax.random.key(0)
    whole = dropout(probabilities(queries, keys, jnp.ones((1, 1, 20, 20), bool)), 0.5, key)
    expected = jnp.einsum("bhqk,bhkd->bhqd", whole, values)
    np.testing.assert_array_equal(attend(queries, keys, values, Sight(ones, ones), 0.5, key), expected)
    np.testing.assert_array_equal(mix(probabilities(queries, keys, jnp.bool_(True)), values, 0.5, key), expected)


def test_memory_grows_with_the_length_of_a_row_and_not_with_its_square():
    def needed(length: int) -> int:
        def loss(queries, keys, values, documents):
            return attend(queries, keys, values, Sight(documents, documents), 0.1, jax.random.key(0)).sum()

        shapes = [(1, 2, length, 16), (1, 2, 16, length), (1, 2, length, 16)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        documents = jax.ShapeDtypeStruct((1, length), jnp.int32)
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, documents).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert needed(8192) < 2.5 * needed(4096) and needed(8192) < 8192**2 * 4 / 2
