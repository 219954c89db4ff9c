"""What attention computes of queries, keys and values (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

Over long rows in blocks of the places that ask, each computed anew on the way back, so that memory grows with a row's
length and not with its square (Rabe & Staats 2021, arXiv:2112.05682).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.layers import Array, dropout

LONGEST = 2048  # a row of more keys is taken in blocks; up to here the whole square is faster on two cores
BLOCK = 256  # so many places ask at once, at most


class Sight(NamedTuple):
    """Which keys a place sees: those of its segment and, where places are numbered, none behind it.

    `asking` [batch, asked] and `seen` [batch, length] are segments, `numbers` [batch or 1, asked] places in the row.
    Padding is a segment too (0) and sees itself, so that no row of the softmax is empty.
    """

    asking: Array
    seen: Array
    numbers: Array | None = None

    def visible(self) -> Array:
        """Booleans [batch, 1, asked, length]."""
        alike = self.asking[:, None, :, None] == self.seen[:, None, None, :]
        if self.numbers is None:
            return alike
        return alike & (self.numbers[:, :, None] >= jnp.arange(self.seen.shape[1]))[:, None]


def probabilities(queries: Array, keys: Array, visible: Array) -> Array:
    """How much each place looks at each key: float32 [batch, heads, asked, length].

    Args:
        queries: [batch, heads, asked, head_dim], scaled already.
        keys: [batch, heads, head_dim, length].
        visible: Booleans that spread to [batch, heads, asked, length]; every place must see some key.
    """
    scores = jnp.einsum("bhqd,bhdk->bhqk", queries, keys).astype(jnp.float32)
    return jax.nn.softmax(jnp.where(visible, scores, -1e30))


def mix(probabilities: Array, values: Array, rate: float, key: Array | None) -> Array:
    """What is seen, [batch, heads, asked, head_dim]; `key` draws the dropout of a share `rate` of the probabilities."""
    return jnp.einsum("bhqk,bhkd->bhqd", dropout(probabilities.astype(values.dtype), rate, key), values)


def attend(queries: Array, keys: Array, values: Array, sight: Sight, rate: float, key: Array | None) -> Array:
    """`mix` of the `probabilities`; of more than LONGEST keys in blocks.

    Args:
        queries: [batch, heads, asked, head_dim], scaled already.
        keys: [batch, heads, head_dim, length]; `values` [batch, heads, length, head_dim].
    """
    asked, length = queries.shape[2], keys.shape[3]
    if length <= LONGEST or asked <= BLOCK:
        return _whole(queries, keys, values, sight, rate, key)
    blocks = -(-asked // BLOCK)
    size = -(-asked // blocks)

    def split(x: Array, axis: int) -> Array:
        """[…, asked, …] to [blocks, …, size, …]; what the last block lacks asks in vain."""
        x = jnp.pad(x, [(0, blocks * size - asked) if i == axis else (0, 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]), axis, 0)

    def look(block: tuple[Array, Array, Array, Array]) -> Array:
        number, queries, asking, numbers = block
        block_key = None if key is None else jax.random.fold_in(key, number)
        seen = Sight(asking, sight.seen, None if sight.numbers is None else numbers)
        return _whole(queries, keys, values, seen, rate, block_key)

    numbers = jnp.zeros((1, asked), int) if sight.numbers is None else sight.numbers
    taken = (jnp.arange(blocks), split(queries, 2), split(sight.asking, 1), split(numbers, 1))
    mixed = jnp.moveaxis(jax.lax.map(jax.checkpoint(look), taken), 0, 2)  # [batch, heads, blocks, size, head_dim]
    return mixed.reshape(*queries.shape[:2], -1, values.shape[3])[:, :, :asked]


def _whole(queries: Array, keys: Array, values: Array, sight: Sight, rate: float, key: Array | None) -> Array:
    seeds = None if key is None else jax.random.key_data(key)
    return _attend(queries, keys, values, sight, seeds, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(queries: Array, keys: Array, values: Array, sight: Sight, seeds: Array | None, rate: float) -> Array:
    return _forward(queries, keys, values, sight, seeds, rate)[0]


def _forward(
    queries: Array, keys: Array, values: Array, sight: Sight, seeds: Array | None, rate: float
) -> tuple[Array, tuple]:
    looks = probabilities(queries, keys, sight.visible())
    seen = mix(looks, values, rate, None if seeds is None else jax.random.wrap_key_data(seeds))
    return seen, (queries, keys, values, seeds, looks, seen)


def _backward(rate: float, kept: tuple, gradient: Array) -> tuple:
    # Written by hand since what softmax's gradient sums over all keys is, of what was seen, a sum over the head's
    # width alone (Dao et al. 2022, arXiv:2205.14135, appendix B.2), with dropout as well.
    queries, keys, values, seeds, looks, seen = kept
    key = None if seeds is None else jax.random.wrap_key_data(seeds)
    dropped = dropout(looks.astype(values.dtype), rate, key)
    for_values = jnp.einsum("bhqk,bhqd->bhkd", dropped, gradient)
    for_dropped = jnp.einsum("bhqd,bhkd->bhqk", gradient, values)
    for_looks = dropout(for_dropped, rate, key).astype(jnp.float32)
    common = (gradient.astype(jnp.float32) * seen.astype(jnp.float32)).sum(-1, keepdims=True)
    for_scores = (looks * (for_looks - common)).astype(queries.dtype)
    for_queries = jnp.einsum("bhqk,bhdk->bhqd", for_scores, keys)
    for_keys = jnp.einsum("bhqd,bhqk->bhdk", queries, for_scores)
    return for_queries, for_keys, for_values, None, None


_attend.defvjp(_forward, _backward)
