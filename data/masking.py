"""BERT's corruption of its input (Devlin et al. 2018, section 3.1), vectorised over a batch.

Every draw is a hash of (seed, epoch, row number, what it is for, position). So a row is masked anew in each epoch, and
the same whatever batch, thread, worker or host it is made on.
"""

import dataclasses
import functools
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Masking:
    """What is hidden, and how.

    Attributes:
        vocab_size: pieces, the specials included; random replacements are drawn from the others.
        special_ids: never hidden.
        continues_word: [vocab_size] Booleans, for whole words.
        rate: share of a row's tokens that is to be predicted.
        whole_word: all pieces of a word together, as far as the row's share has room for any word.
        mask_share, random_share: how many of these become [MASK] or a random piece; the rest stay as they are.
    """

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]
    continues_word: np.ndarray
    rate: float = 0.15
    whole_word: bool = False
    mask_share: float = 0.8
    random_share: float = 0.1

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        """[vocab_size] Booleans."""
        return np.isin(np.arange(self.vocab_size), self.special_ids)

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """All ids that are no specials."""
        return np.flatnonzero(~self.is_special)


def predictions_per_row(rate: float, seq_len: int) -> int:
    """How many places for predictions a row has."""
    return math.ceil(rate * seq_len)


def mask_batch(
    tokens: np.ndarray,
    segment_ids: np.ndarray,
    *,
    masking: Masking,
    seed: int,
    epoch: np.ndarray,
    index: np.ndarray,
) -> dict[str, np.ndarray]:
    """Hides some tokens of each row.

    A row with c tokens that are neither special nor padding has round(rate × c) predictions, at least one, or none if c
    is 0. Unused places for predictions have position 0, id 0 and weight 0.

    Args:
        tokens, segment_ids: int32 [rows, length].
        epoch, index: [rows], what the draws depend on beside `seed`.

    Returns:
        `tokens` [rows, length] with some hidden; `predict_positions`, `predict_ids` (the originals) int32 and
        `predict_weights` (1 or 0) float32 [rows, predictions].
    """
    rows, length = tokens.shape
    most = predictions_per_row(masking.rate, length)
    candidates = (segment_ids > 0) & ~masking.is_special[tokens]
    available = candidates.sum(1)
    budget = np.minimum(np.maximum(np.rint(masking.rate * available).astype(int), available > 0), most)

    scores = np.where(candidates, uniform(seed, epoch, index, 0, length), 2.0)
    choose = _choose_words if masking.whole_word else _choose_tokens
    positions, chosen = choose(scores, budget, most, tokens, segment_ids, masking)

    originals = np.take_along_axis(tokens, positions, 1)
    fate = uniform(seed, epoch, index, 1, most)
    draws = uniform(seed, epoch, index, 2, most)
    replacements = masking.ordinary_ids[(draws * len(masking.ordinary_ids)).astype(int)]
    hidden = np.where(fate < masking.mask_share, masking.mask_id, originals)
    at_random = (fate >= masking.mask_share) & (fate < masking.mask_share + masking.random_share)
    hidden = np.where(at_random, replacements, hidden)

    corrupted = tokens.copy()
    row_numbers = np.broadcast_to(np.arange(rows)[:, None], positions.shape)
    corrupted[row_numbers[chosen], positions[chosen]] = hidden[chosen]
    return {
        "tokens": corrupted,
        "predict_positions": np.where(chosen, positions, 0).astype(np.int32),
        "predict_ids": np.where(chosen, originals, 0).astype(np.int32),
        "predict_weights": chosen.astype(np.float32),
    }


def uniform(seed: int, epoch: np.ndarray, index: np.ndarray, stream: int, length: int) -> np.ndarray:
    """[len(index), length] numbers in [0, 1); a row's depend on (seed, epoch, index, stream) and nothing else."""
    rows = np.asarray(index).astype(np.uint64)
    for word in (np.asarray(epoch).astype(np.uint64), np.uint64(seed % 2**64), np.uint64(stream)):
        rows = _mix(rows + _GOLDEN) ^ word
    counter = np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(_mix(rows)[:, None] + counter) >> np.uint64(11)) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _choose_tokens(
    scores: np.ndarray, budget: np.ndarray, most: int, tokens: np.ndarray, segment_ids: np.ndarray, masking: Masking
) -> tuple[np.ndarray, np.ndarray]:
    """The positions [rows, most] of the lowest scores, and which of them are within the budget."""
    lowest = np.argpartition(scores, most - 1, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(scores, lowest, 1), axis=1)
    return np.take_along_axis(lowest, order, 1), np.arange(most) < budget[:, None]


def _choose_words(
    scores: np.ndarray, budget: np.ndarray, most: int, tokens: np.ndarray, segment_ids: np.ndarray, masking: Masking
) -> tuple[np.ndarray, np.ndarray]:
    """The same for whole words: in the order of their first piece's score, each taken if it still fits.

    A row in which every word is too long has single pieces chosen.
    """
    rows, length = scores.shape
    candidates = scores < 2
    joined = np.zeros(scores.shape, bool)  # to the piece before
    joined[:, 1:] = (
        masking.continues_word[tokens[:, 1:]]
        & (segment_ids[:, 1:] == segment_ids[:, :-1])
        & candidates[:, 1:]
        & candidates[:, :-1]
    )
    word = np.cumsum(~joined, axis=1) - 1  # what is no candidate is a word of its own, with the score 2
    flat_word = word + length * np.arange(rows)[:, None]
    sizes = np.bincount(flat_word.ravel(), minlength=rows * length).reshape(rows, length)
    word_scores = np.full((rows, length), 2.0)
    word_scores.reshape(-1)[flat_word[~joined]] = scores[~joined]

    order = np.argsort(word_scores, axis=1)
    sizes = np.take_along_axis(sizes, order, 1)
    taken = np.zeros((rows, length), bool)
    room = budget.copy()
    for i in range(length):
        fits = sizes[:, i] <= room
        taken[:, i] = fits
        room -= np.where(fits, sizes[:, i], 0)
        if not room.any():
            break
    chosen_words = np.empty_like(taken)
    np.put_along_axis(chosen_words, order, taken, 1)
    chosen = np.take_along_axis(chosen_words, word, 1) & candidates

    stuck = ~chosen.any(1)
    scores = np.where(chosen, scores - 1, scores)  # the chosen ones first
    filled = np.where(stuck, budget, chosen.sum(1))
    return _choose_tokens(scores, filled, most, tokens, segment_ids, masking)
