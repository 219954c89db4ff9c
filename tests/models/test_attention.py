"""Attention of long rows in blocks: what the whole square gives, in memory that does not grow with it."""

import itertools
import os

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


@pytest.mark.parametrize(
    ("asked", "length", "causal"),
    [(12, 12, False), (20, 20, True), (14, 20, False), (20, 9, False)],
)
def test_blocks_give_the_numbers_and_gradients_of_a_loop_over_places(short, asked, length, causal):
    """Also where another row is looked at, of another length, as a decoder looks at its source."""
    queries, keys, values = drawn(2, 3, asked, 4), drawn(2, 3, 4, length, seed=1), drawn(2, 3, length, 4, seed=2)
    asking, documents = segments(2, asked), segments(2, length)
    if asked != length:
        documents[:, :3] = 1, 2, 3  # every place must have something to look at
    sight = Sight(jnp.asarray(asking), jnp.asarray(documents), jnp.arange(length)[None] if causal else None)

    def loop(queries, keys, values):
        rows = []
        for row in range(2):
            seen = []
            for place in range(asked):
                alike = np.flatnonzero(documents[row] == asking[row, place])
                alike = alike[alike <= place] if causal else alike
                scores = jnp.einsum("hd,hdk->hk", queries[row, :, place], keys[row][:, :, alike])
                weights = jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True)
                seen.append(jnp.einsum("hk,hkd->hd", weights, values[row][:, alike]))
            rows.append(jnp.stack(seen, 1))
        return jnp.stack(rows)

    def blocks(queries, keys, values):
        return attend(queries, keys, values, sight, 0.1, None)

    weights, given = drawn(2, 3, asked, 4, seed=3), (queries, keys, values)
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


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from models import attention
attention.LONGEST, attention.BLOCK = 8, 6
mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
draw, wide, turned = np.random.default_rng(0), (4, 2, 20, 4), (4, 2, 4, 20)
given = [jnp.asarray(draw.normal(size=shape), "float32") for shape in (wide, turned, wide)]
documents = jnp.asarray(np.repeat([[1, 2, 3, 0]], 4, 0).repeat(5, 1))
def loss(queries, keys, values, documents):
    sight = attention.Sight(documents, documents, jnp.arange(20)[None])
    return jnp.square(attention.attend(queries, keys, values, sight, 0.1, jax.random.key(0))).sum()
there = NamedSharding(mesh, PartitionSpec("data", "tensor")), NamedSharding(mesh, PartitionSpec("data"))
function = jax.value_and_grad(loss, (0, 1, 2))
one = jax.jit(function)(*given, documents)
four = jax.jit(function)(*jax.device_put(given, there[0]), jax.device_put(documents, there[1]))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
print(len(jax.devices()), {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(four[1])})
"""


def test_blocks_over_devices_with_rows_and_heads_apart_give_what_one_gives(command, simulated):
    done = command("-c", DEVICES, env=os.environ | simulated(4))
    assert done.returncode == 0 and done.stdout.split() == ["4", "{4}"], done.stderr


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
