"""The last layer over a whole vocabulary: its logits, and their cross-entropy with a known answer.

The cross-entropy is a function of its own, since the logits of a batch are the largest array of a small model: they are
kept once, vocabulary first, the layout in which XLA's CPU back end runs the products and the sums over the vocabulary
fastest; and their gradient is made in one pass, without a scatter.
"""

import functools

import jax
import jax.numpy as jnp

from models.layers import Array, add_bias

NEVER = -1e30  # the logit of what is no word; finite, so that no gradient is NaN


def vocabulary_logits(hidden: Array, table: Array, bias: Array, size: int) -> Array:
    """Float32 logits [..., entries] of `hidden` [..., hidden]; the table's entries from `size` on are never likely.

    Args:
        table: [entries, hidden]; padded to a round number of entries.
        bias: [entries].
        size: how many entries are words.
    """
    logits = add_bias((hidden @ table.astype(hidden.dtype).T).astype(jnp.float32), bias)
    return logits if size == table.shape[0] else jnp.where(jnp.arange(table.shape[0]) < size, logits, NEVER)


def vocabulary_cross_entropy(hidden: Array, table: Array, bias: Array, size: int, labels: Array) -> tuple[Array, Array]:
    """The cross-entropy in nats, and whether the label has the highest logit, both float32 as `labels` [...].

    Args: as those of `vocabulary_logits`; `labels` are entries below `size`.
    """
    loss, hit = _cross_entropy(hidden.reshape(-1, hidden.shape[-1]), table, bias, labels.reshape(-1), size)
    return loss.reshape(labels.shape), hit.reshape(labels.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden: Array, table: Array, bias: Array, labels: Array, size: int) -> tuple[Array, Array]:
    return _forward(hidden, table, bias, labels, size)[0]


def _forward(hidden: Array, table: Array, bias: Array, labels: Array, size: int) -> tuple[tuple[Array, Array], tuple]:
    products = jax.lax.dot_general(table.astype(hidden.dtype), hidden, (((1,), (1,)), ((), ())))
    logits = products.astype(jnp.float32) + bias[:, None]  # [entries, rows]
    if size != table.shape[0]:
        logits = jnp.where(jnp.arange(table.shape[0])[:, None] < size, logits, NEVER)
    highest = logits.max(0)
    normalizer = highest + jnp.log(jnp.exp(logits - highest).sum(0))
    of_label = jnp.take_along_axis(logits, labels[None], axis=0)[0]
    hit = (of_label >= highest).astype(jnp.float32)
    return (normalizer - of_label, hit), (hidden, table, logits, normalizer, labels)


def _backward(size: int, kept: tuple, gradients: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    hidden, table, logits, normalizer, labels = kept
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0) == labels
    for_logits = (jnp.exp(logits - normalizer) - is_label) * gradients[0]
    narrow = for_logits.astype(hidden.dtype)
    for_hidden = jax.lax.dot_general(narrow, table.astype(hidden.dtype), (((0,), (0,)), ((), ())))
    for_table = jax.lax.dot_general(narrow, hidden, (((1,), (0,)), ((), ())))
    return for_hidden, for_table.astype(table.dtype), for_logits.sum(1), None


_cross_entropy.defvjp(_forward, _backward)
