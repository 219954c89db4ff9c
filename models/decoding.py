"""From a model that names the next token to whole texts: greedy, by chance, or by beam search, in one compiled loop.

Keys and values of what was read are kept in caches whose size is fixed; they are given more room in a few steps, each a
loop of its own in the same compilation, so that short texts never pay for the longest. A beam's tokens stand in the
caches where they were written, and a table says which of them a beam sees: nothing is copied when beams part.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from errors import UserError
from models.layers import Array
from models.transformer import Cache

FIRST_ROOM = 64  # slots that a text has in the caches at first; doubled when they are full
ROUND = 16  # what the greatest number of slots is a multiple of
BLOCK = 64  # scores that are looked through together for the largest
IMPOSSIBLE = -1e9  # the score of what cannot be; finite, so that sums with it are numbers


# A model's step, `(tokens, positions, visible, caches, slot) -> (logits, caches)`, of tokens [batch, new] that go
# behind those in the caches, from `slot` on; `visible` [batch, 1, new, slots] says which slots each of them sees. The
# logits are float32 [batch, new, entries], or of the last token alone [batch, 1, entries].
Advance = Callable[[Array, Array, Array, Sequence[Cache], Array | int], tuple[Array, list[Cache]]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the next token is chosen where there is one text at a time.

    Attributes:
        temperature: 0 takes the likeliest; else logits are divided by it and the token is drawn.
        top_k: only among so many of the likeliest; 0 for all.
        top_p: only among the likeliest that together have this probability (Holtzman et al. 2020, arXiv:1904.09751).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self, entries: int) -> None:
        """Raises UserError for a value that no choice can be made with, of so many entries."""
        if not 0 <= self.temperature < jnp.inf:
            raise UserError("--temperature", self.temperature, "Give 0 for the likeliest token, or a number above.")
        if not 0 <= self.top_k <= entries:
            mend = f"Give a number up to the {entries} pieces of the vocabulary, or 0 for all."
            raise UserError("--top_k", self.top_k, mend)
        if not 0 < self.top_p <= 1:
            raise UserError("--top_p", self.top_p, "Give a share above 0, at most 1.")
        for name, value, all_of_them in (("--top_k", self.top_k, 0), ("--top_p", self.top_p, 1)):
            if value != all_of_them and self.temperature == 0:
                raise UserError(name, f"{value}, but nothing is drawn", "Give a --temperature above 0 as well.")

    def __call__(self, logits: Array, keys: Array) -> Array:
        """A token for each row of [batch, entries]; `keys` [batch] draw them."""
        if self.temperature == 0:
            return _likeliest(logits)
        logits = logits / self.temperature
        if self.top_k or self.top_p < 1:
            ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
            lowest = jnp.full(len(logits), -jnp.inf)
            if self.top_k:
                lowest = ordered[:, self.top_k - 1]
                ordered = jnp.where(ordered >= lowest[:, None], ordered, -jnp.inf)
            if self.top_p < 1:
                before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
                last = (before < self.top_p).sum(-1) - 1
                lowest = jnp.maximum(lowest, jnp.take_along_axis(ordered, last[:, None], -1)[:, 0])
            logits = jnp.where(logits >= lowest[:, None], logits, -jnp.inf)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


class Prompt(NamedTuple):
    """Where texts begin: tokens [batch, length], filled up on the left, of which the last `lengths` [batch] count."""

    tokens: Array | np.ndarray
    lengths: Array | np.ndarray


class Texts(NamedTuple):
    """What was decoded: tokens [batch, max_tokens], of which the first `lengths` [batch] count, the end token among
    them; and the sum of their log-probabilities, float32 [batch].
    """

    tokens: Array
    lengths: Array
    scores: Array


def decode(
    advance: Advance,
    make_caches: Callable[[int], list[Cache]],
    prompt: Prompt,
    choice: Choice,
    keys: Array,
    *,
    max_tokens: int,
    end_id: int,
) -> Texts:
    """One text for each prompt; it ends with the end token, or after `max_tokens`.

    Args:
        make_caches: empty caches with so many slots.
        keys: [batch] random keys, of each row; with the same key a row gives the same text in any batch.
    """
    batch, length = prompt.tokens.shape
    first = length - prompt.lengths  # the first place that is no filling

    def places(start: Array | int, count: int) -> Array:
        return jnp.broadcast_to(start + jnp.arange(count), (batch, count))

    def visible(asking: Array, slots: int) -> Array:
        slot = jnp.arange(slots)
        seen = (slot >= first[:, None, None]) & (slot <= asking[:, :, None])
        return seen[:, None]

    def take(state: dict[str, Any], logits: Array, caches: list[Cache]) -> dict[str, Any]:
        """The state with one more token for each row, chosen by logits [batch, entries]."""
        number, ended = state["number"], state["ended"]
        chosen = choice(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        told = jnp.take_along_axis(logits, chosen[:, None], -1) - _normalizer(logits, logits.max(-1, keepdims=True))
        chosen = jnp.where(ended, end_id, chosen)
        return {
            "number": number + 1,
            "last": chosen,
            "caches": caches,
            "tokens": state["tokens"].at[:, number].set(chosen),
            "lengths": state["lengths"] + ~ended,
            "scores": state["scores"] + jnp.where(ended, 0, told[:, 0]),
            "ended": ended | (chosen == end_id),
        }

    def step(state: dict[str, Any], slots: int) -> dict[str, Any]:
        slot = length + state["number"] - 1
        at = places(slot, 1)
        logits, caches = advance(state["last"][:, None], at - first[:, None], visible(at, slots), state["caches"], slot)
        return take(state, logits[:, -1], caches)

    rooms = _rooms(length, length + max_tokens - 1)
    at = places(0, length)
    # Filling sees the first place, so that no row of the softmax is empty.
    seen = visible(jnp.maximum(at, first[:, None]), rooms[0])
    logits, caches = advance(
        jnp.asarray(prompt.tokens), jnp.maximum(at - first[:, None], 0), seen, make_caches(rooms[0]), 0
    )
    nothing = {
        "number": jnp.zeros((), jnp.int32),  # of tokens that were chosen
        "tokens": jnp.full((batch, max_tokens), end_id, jnp.int32),
        "lengths": jnp.zeros(batch, jnp.int32),
        "scores": jnp.zeros(batch, jnp.float32),
        "ended": jnp.zeros(batch, bool),
    }
    state = take(nothing, logits[:, -1], caches)
    state = _loop(step, state, lambda state: ~state["ended"].all(), rooms, length - 1, max_tokens)
    return Texts(state["tokens"], state["lengths"], state["scores"])


class Beams(NamedTuple):
    """What a beam search leaves behind; `read_beams` makes texts of it.

    Attributes:
        tokens, parents: of each step the token of every beam, and the beam that it went on from: int32
            [max_tokens, batch, beams].
        scores: of the best texts, best first, float32 [batch, beams].
        lengths, beams: how many tokens each of these texts has before its end, and the beam it was on then.
    """

    tokens: Array
    parents: Array
    scores: Array
    lengths: Array
    beams: Array


def search_beams(
    advance: Advance,
    make_caches: Callable[[int], list[Cache]],
    start: Array,
    *,
    beams: int,
    max_tokens: int,
    end_id: int,
    length_penalty: float,
) -> Beams:
    """The best texts that a search with so many live beams finds, for each start token of [batch].

    A text's score is its log-probability over ((5 + length) / 6) ** length_penalty (Wu et al. 2016, arXiv:1609.08144),
    the end token counted. The search goes on while a live beam could still come to stand among those that have ended.

    Args:
        make_caches: empty caches with so many slots; a step takes one for every beam.
        length_penalty: at least 0.
    """
    batch = start.shape[0]
    own = jnp.arange(beams)
    itself = jnp.broadcast_to(jnp.eye(beams, dtype=bool), (batch, beams, beams))

    def penalty(length: Array | int) -> Array:
        return ((5.0 + length) / 6.0) ** length_penalty

    def with_ends(state: dict[str, Any], scores: Array, lengths: Array, of: Array) -> dict[str, Array]:
        """The best of the ends there are and of new ones, [batch, new]."""
        new = {"scores": scores, "lengths": jnp.broadcast_to(lengths, scores.shape), "beams": of}
        all_ends = {name: jnp.concatenate([state[name], more], 1) for name, more in new.items()}
        _, best = jax.lax.top_k(all_ends["scores"], beams)
        return {name: jnp.take_along_axis(ends, best, 1) for name, ends in all_ends.items()}

    def step(state: dict[str, Any], slots: int) -> dict[str, Any]:
        number = state["number"]
        at = jnp.broadcast_to(number, (batch, beams))
        visible = state["visible"][:, :, :slots]
        logits, caches = advance(state["last"], at, visible[:, None], state["caches"], number * beams)
        # A beam has one end at most: among twice as many there are enough to live on. They are looked for beam by beam,
        # so that only few of the logits are ever made probabilities.
        many = min(2 * beams, logits.shape[-1])
        highest, tokens = _largest(logits.reshape(batch * beams, -1), many)
        highest = highest.reshape(batch, beams, many)
        scores = state["live"][:, :, None] + highest - _normalizer(logits, highest[:, :, :1])
        best, index = jax.lax.top_k(scores.reshape(batch, -1), min(2 * beams, beams * many))
        parents, tokens = index // many, jnp.take_along_axis(tokens.reshape(batch, -1), index, 1)
        ends = tokens == end_id
        ended = with_ends(state, jnp.where(ends, best / penalty(number + 1), IMPOSSIBLE), number, parents)

        live, kept = jax.lax.top_k(jnp.where(ends, IMPOSSIBLE, best), beams)
        parents, tokens = (jnp.take_along_axis(array, kept, 1) for array in (parents, tokens))
        # A beam sees what the beam saw that it goes on from, and the slot that it will write itself.
        visible = jnp.take_along_axis(state["visible"], parents[:, :, None], 1)
        visible = jax.lax.dynamic_update_slice_in_dim(visible, itself, (number + 1) * beams, 2)
        return {
            "number": number + 1,
            "last": tokens,
            "live": live,
            "caches": caches,
            "visible": visible,
            "tokens": state["tokens"].at[number].set(tokens),
            "parents": state["parents"].at[number].set(parents),
            **ended,
        }

    def goes_on(state: dict[str, Any]) -> Array:
        # A live beam only becomes less likely, and the penalty forgives most at the greatest length.
        return (state["live"][:, 0] / penalty(max_tokens) > state["scores"][:, -1]).any()

    rooms = _rooms(1, max_tokens, slots_a_step=beams)
    state: dict[str, Any] = {
        "number": jnp.zeros((), jnp.int32),  # of the steps that are done
        "last": jnp.broadcast_to(start[:, None], (batch, beams)),
        "live": jnp.broadcast_to(jnp.where(own == 0, 0.0, IMPOSSIBLE), (batch, beams)),  # the start is there once
        "caches": make_caches(rooms[0] * beams),
        # Which slots each beam sees; one step more than there are, which the last step prepares.
        "visible": jnp.zeros((batch, beams, (rooms[-1] + 1) * beams), bool).at[:, :, :beams].set(itself),
        "tokens": jnp.full((max_tokens, batch, beams), end_id),
        "parents": jnp.zeros((max_tokens, batch, beams), jnp.int32),
        "scores": jnp.full((batch, beams), IMPOSSIBLE),
        "lengths": jnp.zeros((batch, beams), jnp.int32),
        "beams": jnp.zeros((batch, beams), jnp.int32),
    }
    state = _loop(step, state, goes_on, rooms, 0, max_tokens, slots_a_step=beams)
    # What is still alive is cut off here, and takes its place beside what has ended.
    cut = jnp.where(state["number"] == max_tokens, state["live"] / penalty(max_tokens), IMPOSSIBLE)
    ended = with_ends(state, cut, state["number"], jnp.broadcast_to(own, (batch, beams)))
    return Beams(state["tokens"], state["parents"], ended["scores"], ended["lengths"], ended["beams"])


def read_beams(found: Beams) -> tuple[list[list[int]], np.ndarray]:
    """The tokens of the best text for each start, without its end token; and its score, float32 [batch]."""
    tokens, parents, scores, lengths, beams = (np.asarray(array) for array in found)
    texts = []
    for row in range(len(scores)):
        beam, text = beams[row, 0], []
        for step in reversed(range(lengths[row, 0])):
            text.append(int(tokens[step, row, beam]))
            beam = parents[step, row, beam]
        texts.append(text[::-1])
    return texts, scores[:, 0]


def _likeliest(logits: Array) -> Array:
    """As argmax, int32, which XLA compares one by one on a CPU: the first of the entries with the highest logit."""
    number = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    highest = logits.max(-1, keepdims=True)
    return jnp.where(logits == highest, number, logits.shape[-1] - 1).min(-1)


def _largest(x: Array, count: int) -> tuple[Array, Array]:
    """As `jax.lax.top_k` over the last axis of [rows, many], which on a CPU sorts where comparing is enough.

    The largest stand in the blocks with the largest maxima, so only as many blocks are looked through. A block's
    scores lie apart, so that the maxima of neighbouring blocks are taken together.
    """
    rows, many = x.shape
    blocks = many // BLOCK
    if many % BLOCK or blocks <= count:
        return jax.lax.top_k(x, count)
    in_blocks = x.reshape(rows, BLOCK, blocks)
    _, chosen = jax.lax.top_k(in_blocks.max(1), count)
    found = jnp.take_along_axis(in_blocks, chosen[:, None], axis=2).reshape(rows, -1)
    largest, index = jax.lax.top_k(found, count)
    return largest, index // count * blocks + jnp.take_along_axis(chosen, index % count, axis=1)


def _normalizer(logits: Array, highest: Array) -> Array:
    """The logarithm of the sum of their exponentials over the last axis, which stays; `highest` is its maximum."""
    return highest + jnp.log(jnp.exp(logits - highest).sum(-1, keepdims=True))


def _rooms(least: int, most: int, slots_a_step: int = 1) -> list[int]:
    """How many steps the caches have room for, one after the other: doubled from `FIRST_ROOM` slots, up to `most`.

    The last has a round number of slots, since rows of an odd length are slow to read.
    """
    rooms = [max(FIRST_ROOM // slots_a_step, 1)]
    while rooms[-1] < least:
        rooms[-1] *= 2
    while rooms[-1] < most:
        rooms.append(2 * rooms[-1])
    steps = max(ROUND // slots_a_step, 1)
    return [*rooms[:-1], -(-max(least, most) // steps) * steps]


def _loop(
    step: Callable[[dict[str, Any], int], dict[str, Any]],
    state: dict[str, Any],
    goes_on: Callable[[dict[str, Any]], Array],
    rooms: Sequence[int],
    offset: int,
    max_tokens: int,
    slots_a_step: int = 1,
) -> dict[str, Any]:
    """Steps until `goes_on` says no or there are `max_tokens`; a step takes the place offset + state["number"]."""
    for room in rooms:
        state = _loop_in(room, room * slots_a_step, step, state, goes_on, offset, max_tokens)
    return state


def _loop_in(
    room: int,
    slots: int,
    step: Callable[[dict[str, Any], int], dict[str, Any]],
    state: dict[str, Any],
    goes_on: Callable[[dict[str, Any]], Array],
    offset: int,
    max_tokens: int,
) -> dict[str, Any]:
    """`_loop` as long as the caches with so many slots have room."""

    def has_more(state: dict[str, Any]) -> Array:
        return (state["number"] < max_tokens) & (offset + state["number"] < room) & goes_on(state)

    state = {**state, "caches": [cache.widened(slots) for cache in state["caches"]]}
    return jax.lax.while_loop(has_more, lambda state: step(state, slots), state)
