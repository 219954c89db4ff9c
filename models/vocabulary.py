"""The last layer over a whole vocabulary: its logits, and their cross-entropy with a known answer.

The cross-entropy is a function of its own, since the logits of a batch are the largest array of a small model: they are
kept once, vocabulary first, the layout in which XLA's CPU back end runs the products and the sums over the vocabulary
fastest; and their gradient is made in one pass, without a scatter.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.layers import Array, add_bias

LARGEST = 2**30  # bytes of the logits of a batch; those of a larger one are made in parts
NEVER = -1e30  # the logit of what is no word; finite, so that no gradient is NaN


def vocabulary_logits(hidden: Array, table: Array, bias: Array | None, size: int) -> Array:
    """Float32 logits [..., entries] of `hidden` [..., hidden]; the table's entries from `size` on are never likely.

    Args:
        table: [entries, hidden]; padded to a round number of entries.
        bias: [entries], if there is one.
        size: how many entries are words.
    """
    return make_logits(table, bias, size, hidden.dtype)(hidden)


def make_logits(table: Array, bias: Array | None, size: int, dtype: jnp.dtype) -> Callable[[Array], Array]:
    """`vocabulary_logits` as a function of `hidden` alone, for a loop's steps: the table is turned once, outside."""
    table = table.astype(dtype)
    turned = table.T

    def logits(hidden: Array) -> Array:
        if hidden.size == hidden.shape[-1]:  # one row reads the table as it lies: turning it takes three steps' time
            products = (table @ hidden.reshape(-1)).reshape(*hidden.shape[:-1], -1)
        else:
            products = hidden @ turned
        logits = products.astype(jnp.float32)
        logits = logits if bias is None else add_bias(logits, bias)
        return logits if size == table.shape[0] else jnp.where(jnp.arange(table.shape[0]) < size, logits, NEVER)

    return logits


def vocabulary_cross_entropy(
    hidden: Array, table: Array, bias: Array | None, size: int, labels: Array, smoothing: float = 0.0
) -> tuple[Array, Array]:
    """The cross-entropy in nats, and whether the label has the highest logit, both float32 as `labels` [...].

    Args: as those of `vocabulary_logits`; `labels` are entries below `size`; of the target, a share `smoothing` is
        spread evenly over all words (Szegedy et al. 2016, arXiv:1512.00567).
    """
    rows, answers = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    parts = _parts(len(rows), table.shape[0])
    if parts == 1:
        loss, hit = _cross_entropy(rows, table, bias, answers, size, smoothing)
    else:
        # Part i takes every parts-th row, so that each device goes on working on the rows that it holds; the logits of
        # a part are made anew on the way back.
        def of_part(part: tuple[Array, Array]) -> tuple[Array, Array]:
            return _cross_entropy(part[0], table, bias, part[1], size, smoothing)

        split = (jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0) for x in (rows, answers))
        loss, hit = (x.T.reshape(-1) for x in jax.lax.map(jax.checkpoint(of_part), tuple(split)))
    return loss.reshape(labels.shape), hit.reshape(labels.shape)


def _parts(rows: int, entries: int) -> int:
    """Into how many equal parts the rows are taken, so that the logits of one have at most LARGEST bytes."""
    wanted = -(-rows * entries * 4 // LARGEST)
    return next((parts for parts in range(max(wanted, 1), rows) if rows % parts == 0), rows) if wanted > 1 else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(
    hidden: Array, table: Array, bias: Array | None, labels: Array, size: int, smoothing: float
) -> tuple[Array, Array]:
    return _forward(hidden, table, bias, labels, size, smoothing)[0]


def _forward(
    hidden: Array, table: Array, bias: Array | None, labels: Array, size: int, smoothing: float
) -> tuple[tuple[Array, Array], tuple]:
    products = jax.lax.dot_general(table.astype(hidden.dtype), hidden, (((1,), (1,)), ((), ())))
    logits = products.astype(jnp.float32)  # [entries, rows]
    if bias is not None:
        logits = logits + bias[:, None]
    if size != table.shape[0]:
        logits = jnp.where(jnp.arange(table.shape[0])[:, None] < size, logits, NEVER)
    highest = logits.max(0)
    normalizer = highest + jnp.log(jnp.exp(logits - highest).sum(0))
    of_label = jnp.take_along_axis(logits, labels[None], axis=0)[0]
    hit = (of_label >= highest).astype(jnp.float32)
    of_target = of_label
    if smoothing:
        of_target = (1 - smoothing) * of_label + smoothing * logits[:size].mean(0)
    return (normalizer - of_target, hit), (hidden, table, bias, logits, normalizer, labels)


def _backward(size: int, smoothing: float, kept: tuple, gradients: tuple[Array, Array]) -> tuple:
    hidden, table, bias, logits, normalizer, labels = kept
    number = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    target = (number == labels).astype(jnp.float32)
    if smoothing:
        target = (1 - smoothing) * target + jnp.where(number < size, smoothing / size, 0)
    for_logits = (jnp.exp(logits - normalizer) - target) * gradients[0]
    narrow = for_logits.astype(hidden.dtype)
    for_hidden = jax.lax.dot_general(narrow, table.astype(hidden.dtype), (((0,), (0,)), ((), ())))
    for_table = jax.lax.dot_general(narrow, hidden, (((1,), (0,)), ((), ())))
    return for_hidden, for_table.astype(table.dtype), None if bias is None else for_logits.sum(1), None


_cross_entropy.defvjp(_forward, _backward)
