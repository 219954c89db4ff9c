import math

import numpy as np
import pytest

from data.masking import Masking, mask_batch, predictions_per_row, uniform

VOCABULARY, MASK = 1_000, 4
SPECIAL = (0, 1, 2, 3, 4, 500)
CONTINUES = np.arange(VOCABULARY) >= 600
CONTINUES.setflags(write=False)


def masking(**options) -> Masking:
    return Masking(vocab_size=VOCABULARY, mask_id=MASK, special_ids=SPECIAL, continues_word=CONTINUES, **options)


def batch(rows: int, length: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random rows with specials, two segments, and padding of different lengths at the end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCABULARY, (rows, length)).astype(np.int32)
    tokens[:, [0, 20]] = 2
    tokens[:, [19, 40]] = 3
    segments = np.where(np.arange(length) < 20, 1, 2) * np.ones((rows, 1), int)
    segments[np.arange(length) >= rng.integers(length // 2, length + 1, (rows, 1))] = 0
    return np.where(segments > 0, tokens, 0).astype(np.int32), segments.astype(np.int32)


def apply(tokens, segments, *, epoch=0, seed=7, **options):
    index = np.arange(len(tokens))
    return mask_batch(
        tokens, segments, masking=masking(**options), seed=seed, epoch=np.full(len(tokens), epoch), index=index
    )


def positions_of(result, row: int) -> list[int]:
    return sorted(result["predict_positions"][row][result["predict_weights"][row] > 0].tolist())


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_a_row_predicts_its_share_of_ordinary_tokens_and_the_originals_come_back(whole_word, rate):
    tokens, segments = batch(300)
    result = apply(tokens, segments, whole_word=whole_word, rate=rate)
    most = predictions_per_row(rate, 64)
    assert most == math.ceil(rate * 64)
    assert {name: (array.shape, array.dtype) for name, array in result.items()} == {
        "tokens": ((300, 64), np.int32),
        "predict_positions": ((300, most), np.int32),
        "predict_ids": ((300, most), np.int32),
        "predict_weights": ((300, most), np.float32),
    }
    for row in range(300):
        candidates = [p for p in range(64) if segments[row, p] > 0 and tokens[row, p] not in SPECIAL]
        chosen = positions_of(result, row)
        budget = min(max(1, round(rate * len(candidates))), most)
        assert len(chosen) == budget or (whole_word and 0 < len(chosen) < budget)
        assert len(set(chosen)) == len(chosen) and set(chosen) <= set(candidates)
        untouched = np.setdiff1d(np.arange(64), chosen)
        np.testing.assert_array_equal(result["tokens"][row, untouched], tokens[row, untouched])
    used = result["predict_weights"] > 0
    originals = np.take_along_axis(tokens, result["predict_positions"], 1)
    np.testing.assert_array_equal(result["predict_ids"][used], originals[used])
    assert not result["predict_ids"][~used].any() and not result["predict_positions"][~used].any()


def test_of_the_chosen_tokens_80_percent_are_hidden_10_replaced_10_kept():
    tokens, segments = batch(4_000)
    result = apply(tokens, segments)
    used = result["predict_weights"] > 0
    shown = np.take_along_axis(result["tokens"], result["predict_positions"], 1)[used]
    original = result["predict_ids"][used]
    count = used.sum()
    hidden, kept = (shown == MASK).sum(), (shown == original).sum()
    for observed, share in ((hidden, 0.8), (kept, 0.1), (count - hidden - kept, 0.1)):
        assert abs(observed - share * count) < 4 * math.sqrt(share * (1 - share) * count)  # four sigma

    random = shown[(shown != MASK) & (shown != original)]
    assert not np.isin(random, SPECIAL).any()
    counts = np.bincount(random, minlength=VOCABULARY)[np.setdiff1d(np.arange(VOCABULARY), SPECIAL)]
    expected = counts.mean()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - len(counts)) < 5 * math.sqrt(2 * len(counts))  # uniform over all ordinary pieces


def test_the_shares_can_be_changed():
    tokens, segments = batch(50)
    result = apply(tokens, segments, mask_share=0.0, random_share=0.0)
    np.testing.assert_array_equal(result["tokens"], tokens)
    used = apply(tokens, segments, mask_share=1.0, random_share=0.0)
    assert (used["tokens"] == MASK).sum() - (tokens == MASK).sum() == used["predict_weights"].sum()


def test_every_ordinary_position_is_chosen_equally_often():
    tokens = np.full((8_000, 40), 7, np.int32)
    result = apply(tokens, np.ones_like(tokens))
    counts = np.bincount(result["predict_positions"].ravel(), minlength=40)  # 6 of 40 in each row, no slot unused
    assert result["predict_weights"].all()
    assert np.abs(counts - 1_200).max() < 4.5 * math.sqrt(8_000 * 0.15 * 0.85)


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_row_is_masked_the_same_in_any_batch_and_anew_in_each_epoch(whole_word):
    tokens, segments = batch(64)
    index, epoch = np.arange(64) * 31, np.arange(64) % 3
    options = {"masking": masking(whole_word=whole_word), "seed": 3}
    whole = mask_batch(tokens, segments, epoch=epoch, index=index, **options)
    some = np.array([40, 3, 17])
    part = mask_batch(tokens[some], segments[some], epoch=epoch[some], index=index[some], **options)
    for name in whole:
        np.testing.assert_array_equal(whole[name][some], part[name])
    for other in (
        mask_batch(tokens, segments, epoch=epoch + 1, index=index, **options),
        mask_batch(tokens, segments, epoch=epoch, index=index + 1, **options),
        mask_batch(tokens, segments, epoch=epoch, index=index, **(options | {"seed": 4})),
    ):
        same = [positions_of(whole, row) == positions_of(other, row) for row in range(64)]
        assert np.mean(same) < 0.1


def test_whole_words_are_chosen_whole():
    tokens, segments = batch(300)
    result = apply(tokens, segments, whole_word=True)
    total = budget = 0
    for row in range(300):
        words: list[list[int]] = []
        for p in range(64):
            if segments[row, p] == 0 or tokens[row, p] in SPECIAL:
                continue
            next_to = words and words[-1][-1] == p - 1 and segments[row, p] == segments[row, p - 1]
            if next_to and CONTINUES[tokens[row, p]]:
                words[-1].append(p)
            else:
                words.append([p])
        chosen = set(positions_of(result, row))
        share = max(1, round(0.15 * sum(map(len, words))))
        if min(map(len, words)) <= share:
            assert all(chosen.issuperset(word) or chosen.isdisjoint(word) for word in words)
        total, budget = total + len(chosen), budget + share
    assert total > 0.97 * budget  # words of one piece fill up what longer ones leave


def test_a_word_ends_with_its_segment():
    tokens = np.full((200, 20), 700, np.int32)  # each continues the one before
    segments = np.repeat([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], 2, axis=1) * np.ones((200, 1), np.int32)
    result = apply(tokens, segments, whole_word=True)  # 3 of 20: one word of two pieces fits
    chosen = np.array([positions_of(result, row) for row in range(200)])
    assert chosen.shape == (200, 2) and (chosen[:, 0] % 2 == 0).all() and (chosen[:, 1] == chosen[:, 0] + 1).all()


def test_a_row_of_one_long_word_still_has_predictions():
    tokens = np.full((5, 40), 700, np.int32)
    result = apply(tokens, np.ones_like(tokens), whole_word=True)
    assert (result["predict_weights"].sum(1) == 6).all()


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_row_without_ordinary_tokens_has_weight_zero_and_stays_as_it_is(whole_word):
    tokens, segments = batch(4)
    tokens[1], segments[2] = 3, 0
    result = apply(tokens, segments, whole_word=whole_word)
    assert not result["predict_weights"][[1, 2]].any() and result["predict_weights"][[0, 3]].any(1).all()
    np.testing.assert_array_equal(result["tokens"][[1, 2]], tokens[[1, 2]])


def test_a_row_with_one_ordinary_token_predicts_it():
    tokens = np.array([[2, 9, 3, 0, 0, 0, 0, 0]], np.int32)
    result = apply(tokens, (tokens > 0).astype(np.int32))
    assert positions_of(result, 0) == [1]


def test_the_input_is_not_changed():
    tokens, segments = batch(8)
    before = tokens.copy()
    apply(tokens, segments)
    np.testing.assert_array_equal(tokens, before)


def test_uniform_numbers_are_uniform_and_unrelated():
    index = np.arange(2_000)
    numbers = uniform(1, np.zeros_like(index), index, 0, 128)
    assert numbers.shape == (2_000, 128) and numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert abs(((counts - 2_560) ** 2 / 2_560).sum() - 99) < 5 * math.sqrt(2 * 99)
    for other in (
        np.roll(numbers, 1, axis=0),
        np.roll(numbers, 1, axis=1),
        uniform(1, np.ones_like(index), index, 0, 128),
        uniform(1, np.zeros_like(index), index, 1, 128),
        uniform(2, np.zeros_like(index), index, 0, 128),
    ):
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(numbers.size)
    np.testing.assert_array_equal(uniform(1, np.zeros_like(index), index, 0, 64), numbers[:, :64])


def test_uniform_numbers_never_change_between_versions():
    # A resumed run must draw the masks that the run before it would have drawn.
    numbers = uniform(-1, np.array([2]), np.array([3]), 4, 2)[0]
    np.testing.assert_allclose(numbers, [0.9660081443814841, 0.07299611608981915], rtol=0, atol=1e-15)
