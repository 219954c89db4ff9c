"""Masking, for rows of any tokens."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.masking import Masking, mask_batch, predictions_per_row

VOCABULARY, MASK = 20, 4
SPECIAL = (0, 1, 2, 3, 4)


@st.composite
def cases(draw):
    """(tokens, segments, masking, draws): rows of padding, of specials alone, of one long word … are all among them."""
    rows, length = draw(st.integers(1, 5)), draw(st.integers(1, 24))
    ids = draw(
        st.sampled_from([st.integers(0, VOCABULARY - 1), st.integers(5, VOCABULARY - 1), st.just(0), st.just(9)])
    )
    numbers = st.lists(ids, min_size=rows * length, max_size=rows * length)
    tokens = np.array(draw(numbers), np.int32).reshape(rows, length)
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        cuts = draw(st.one_of(st.lists(st.integers(0, length), max_size=5), st.just([0, length // 2, length])))
        for number, (begin, end) in enumerate(zip(sorted(cuts)[:-1], sorted(cuts)[1:], strict=True), 1):
            row[begin:end] = number
    # Where all pieces go on with the word before, a segment is one word, often a longer one than may be hidden.
    continuing = draw(st.one_of(st.just(range(5, VOCABULARY)), st.sets(st.integers(5, VOCABULARY - 1))))
    masking = Masking(
        vocab_size=VOCABULARY,
        mask_id=MASK,
        special_ids=SPECIAL,
        continues_word=np.isin(np.arange(VOCABULARY), [*continuing]),
        rate=draw(st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.1, 0.3, 0.5]))),
        whole_word=draw(st.booleans()),
        mask_share=draw(st.sampled_from([0.0, 0.8, 1.0])),
        random_share=draw(st.sampled_from([0.0, 0.1, 1.0])),
    )
    seeds = st.lists(st.integers(0, 2**40), min_size=rows, max_size=rows)
    draws = {"seed": draw(st.integers(0, 2**70)), "epoch": np.array(draw(seeds)), "index": np.array(draw(seeds))}
    return tokens, segments, masking, draws


def words_of(tokens: np.ndarray, segments: np.ndarray, masking: Masking) -> list[list[int]]:
    """The places of each word of a row that may be hidden."""
    words: list[list[int]] = []
    for place, (token, segment) in enumerate(zip(tokens, segments, strict=True)):
        if segment == 0 or token in SPECIAL:
            continue
        follows = bool(words) and words[-1][-1] == place - 1 and segments[place - 1] == segment
        if follows and masking.continues_word[token]:
            words[-1].append(place)
        else:
            words.append([place])
    return words


@given(cases())
def test_a_row_hides_what_it_promises_and_nothing_else(case):
    tokens, segments, masking, draws = case
    before = tokens.copy(), segments.copy()
    result = mask_batch(tokens, segments, masking=masking, **draws)
    np.testing.assert_array_equal(tokens, before[0])
    np.testing.assert_array_equal(segments, before[1])
    length, most = tokens.shape[1], predictions_per_row(masking.rate, tokens.shape[1])
    assert most == math.ceil(masking.rate * length)
    assert all(result[name].shape == (len(tokens), most) for name in result if name != "tokens")
    assert result["tokens"].shape == tokens.shape and result["tokens"].dtype == np.int32

    for row in range(len(tokens)):
        weights = result["predict_weights"][row]
        assert set(weights.tolist()) <= {0.0, 1.0}
        used = weights > 0
        places = result["predict_positions"][row][used].tolist()
        assert not result["predict_positions"][row][~used].any() and not result["predict_ids"][row][~used].any()
        words = words_of(tokens[row], segments[row], masking)
        candidates = [place for word in words for place in word]
        budget = min(max(round(masking.rate * len(candidates)), bool(candidates)), most)
        assert len(set(places)) == len(places) and set(places) <= set(candidates)
        assert result["predict_ids"][row][used].tolist() == tokens[row][places].tolist()
        others = np.setdiff1d(np.arange(length), places)
        np.testing.assert_array_equal(result["tokens"][row, others], tokens[row, others])
        for place in places:
            shown = result["tokens"][row, place]
            assert shown in (MASK, tokens[row, place]) or shown not in SPECIAL
        if not masking.whole_word or not any(len(word) <= budget for word in words):  # every word is too long: stuck
            assert len(places) == budget
        else:
            assert 0 < len(places) <= budget
            assert all(set(word) <= set(places) or not set(word) & set(places) for word in words)
            left = budget - len(places)
            assert all(len(word) > left for word in words if word[0] not in places), "what still fits is taken"


@given(cases(), st.data())
def test_a_row_is_hidden_alike_in_any_company(case, data):
    tokens, segments, masking, draws = case
    whole = mask_batch(tokens, segments, masking=masking, **draws)
    rows = np.array(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=6)))
    some = {"seed": draws["seed"], "epoch": draws["epoch"][rows], "index": draws["index"][rows]}
    part = mask_batch(tokens[rows], segments[rows], masking=masking, **some)
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][rows])


@given(cases(), st.integers(1, 30))
def test_padding_behind_a_row_changes_nothing_but_the_number_of_places(case, more):
    tokens, segments, masking, draws = case
    short = mask_batch(tokens, segments, masking=masking, **draws)
    wider = [np.pad(array, ((0, 0), (0, more))) for array in (tokens, segments)]
    long = mask_batch(*wider, masking=masking, **draws)
    most = short["predict_ids"].shape[1]
    for name in ("predict_ids", "predict_positions", "predict_weights"):
        np.testing.assert_array_equal(long[name][:, :most], short[name])
        assert not long[name][:, most:].any()
