"""Decoding against the plain way: the whole text through the model for every token, and every text there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from errors import UserError
from models import decoding
from models.decoding import Choice, Prompt, decode, read_beams, search_beams
from models.gpt import GptConfig, GptForCausalLM
from models.transformer import empty_caches

END = 1
LONGEST = 48
GREEDY = Choice()


def make(entries=24, positions=LONGEST, **changes):
    fields = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": entries, "max_positions": positions}
    return GptForCausalLM(GptConfig(**fields | changes, initializer_range=0.5), nnx.Rngs(3))


def steps_of(model, batch):
    def advance(tokens, positions, visible, caches, slot):
        hidden, caches = model.advance(tokens, positions, visible, caches, slot)
        return model.make_logits(model.config.vocab_size)(hidden), caches

    return advance, lambda slots: empty_caches(model.config, batch, slots, model.dtype)


@jax.jit
def whole(model, batch):
    return model(batch, model.config.vocab_size)


def logits_after(model, text):
    """The plain way: [entries] behind a text, all of it through the model; padding keeps the shape the same."""
    filling = LONGEST - len(text)
    batch = {
        "tokens": np.array([[*text, *[0] * filling]], np.int32),
        "segment_ids": np.array([[1] * len(text) + [0] * filling], np.int32),
        "positions": np.arange(LONGEST, dtype=np.int32)[None],
    }
    return np.asarray(whole(model, batch))[0, len(text) - 1]


def prompts_of(texts):
    width = max(map(len, texts))
    tokens = np.zeros((len(texts), width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, width - len(text) :] = text
    return Prompt(tokens, np.array([len(text) for text in texts], np.int32))


def run(model, texts, choice=GREEDY, max_tokens=12, seed=0, numbers=None, end_id=END):
    advance, make_caches = steps_of(model, len(texts))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(numbers or range(len(texts))))
    compiled = jax.jit(
        lambda prompt, keys: decode(advance, make_caches, prompt, choice, keys, max_tokens=max_tokens, end_id=end_id)
    )
    return jax.device_get(compiled(prompts_of(texts), keys))


PROMPTS = [[5, 9, 3], [7], [2, 2, 8, 11, 4, 6, 3]]


@pytest.mark.parametrize("position, room", [("learned", 4), ("sinusoidal", 8), ("rope", 4), ("learned", 64)])
def test_cached_decoding_says_what_the_whole_text_through_the_model_says(position, room, monkeypatch):
    monkeypatch.setattr(decoding, "FIRST_ROOM", room)  # the caches are widened on the way, or never
    model = make(position=position)
    found = run(model, PROMPTS, max_tokens=20, end_id=-1)
    for row, prompt in enumerate(PROMPTS):
        text, score = list(prompt), 0.0
        for step in range(20):
            logits = logits_after(model, text)
            said = int(found.tokens[row, step])
            assert logits[said] >= logits.max() - 1e-4
            score += float(jax.nn.log_softmax(logits)[said])
            text.append(said)
        assert found.lengths[row] == 20 and found.scores[row] == pytest.approx(score, abs=1e-3)


def test_a_text_ends_at_the_end_token_and_the_loop_when_all_have_ended():
    model = make()
    free = run(model, PROMPTS, max_tokens=20, end_id=-1)
    end = int(free.tokens[0, 4])  # what row 0 says is taken for the end
    steps = []
    advance, make_caches = steps_of(model, len(PROMPTS))

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return advance(*arguments)

    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.device_get(decode(counted, make_caches, prompts_of(PROMPTS), Choice(), keys, max_tokens=20, end_id=end))
    expected = [next((i + 1 for i, t in enumerate(row) if t == end), 20) for row in free.tokens]
    np.testing.assert_array_equal(found.lengths, expected)
    for row, length in enumerate(expected):
        np.testing.assert_array_equal(found.tokens[row, :length], free.tokens[row, :length])
        assert (found.tokens[row, length:] == end).all()
    jax.effects_barrier()
    assert len(steps) == max(expected), "no step is computed after the last end"


def test_a_row_gives_the_same_text_whatever_stands_beside_it():
    model, choice = make(), Choice(temperature=1.0)
    together = run(model, PROMPTS, choice, seed=5)
    for row, prompt in enumerate(PROMPTS):
        alone = run(model, [prompt], choice, seed=5, numbers=[row])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    assert (run(model, PROMPTS, choice, seed=6).tokens != together.tokens).any()


@pytest.mark.parametrize(
    "choice, allowed",
    [
        (Choice(1.0, top_k=2), {0, 3}),
        (Choice(1.0, top_p=0.55), {0, 3}),  # the likeliest alone have 0.5
        (Choice(1.0, top_p=0.5), {0}),
        (Choice(1.0, top_k=3, top_p=0.9), {0, 2, 3}),
        (Choice(0.0), {0}),
        (Choice(1.0), {0, 1, 2, 3}),
    ],
)
def test_only_the_likeliest_are_drawn(choice, allowed):
    logits = jnp.log(jnp.array([0.5, 0.05, 0.15, 0.3]))
    drawn = choice(jnp.tile(logits, (4000, 1)), jax.random.split(jax.random.key(1), 4000))
    assert set(np.unique(drawn).tolist()) == allowed


def test_of_equal_logits_greedy_takes_the_first():
    logits = jax.random.randint(jax.random.key(1), (50, 24), 0, 4).astype(jnp.float32)
    np.testing.assert_array_equal(GREEDY(logits, jax.random.split(jax.random.key(0), 50)), logits.argmax(-1))


def test_tokens_are_drawn_by_their_probabilities_at_the_temperature():
    logits = jnp.log(jnp.array([0.5, 0.05, 0.15, 0.3]))
    drawn = Choice(0.5)(jnp.tile(logits, (20_000, 1)), jax.random.split(jax.random.key(1), 20_000))
    expected = np.array([0.5, 0.05, 0.15, 0.3]) ** 2
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, expected / expected.sum(), atol=0.01)


@pytest.mark.parametrize("choice", [Choice(-1.0), Choice(1.0, top_k=25), Choice(1.0, top_p=0.0), Choice(float("nan"))])
def test_a_choice_that_cannot_be_made_is_refused(choice):
    with pytest.raises(UserError):
        choice.check(24)


# ---- beams


def search(model, starts, beams, max_tokens, length_penalty=0.0, end_id=END):
    advance, make_caches = steps_of(model, len(starts))
    compiled = jax.jit(
        lambda start: search_beams(
            advance,
            make_caches,
            start,
            beams=beams,
            max_tokens=max_tokens,
            end_id=end_id,
            length_penalty=length_penalty,
        )
    )
    return read_beams(jax.device_get(compiled(jnp.asarray(starts, jnp.int32))))


def every_text(model, start, max_tokens):
    """Each text that ends, or is cut at `max_tokens`, with its log-probability and its length with the end."""
    entries = model.config.vocab_size
    done, live = [], [((), 0.0)]
    for length in range(1, max_tokens + 1):
        longer = []
        for text, score in live:
            told = jax.nn.log_softmax(logits_after(model, [start, *text]))
            done.append((text, score + float(told[END]), length))
            longer += [((*text, t), score + float(told[t])) for t in range(entries) if t != END]
        live = longer
    return done + [(text, score, max_tokens) for text, score in live]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_search_with_enough_beams_finds_the_best_of_all_texts(length_penalty):
    model = make(entries=5)
    starts = [0, 2, 3, 4]
    texts, scores = search(model, starts, beams=16, max_tokens=3, length_penalty=length_penalty)
    for row, start in enumerate(starts):
        best = max(
            (score / ((5 + length) / 6) ** length_penalty, text) for text, score, length in every_text(model, start, 3)
        )
        assert scores[row] == pytest.approx(best[0], abs=1e-4)
        assert tuple(texts[row]) == best[1]


def plain_beams(model, start, beams, max_tokens, length_penalty):
    """Beam search as a loop over lists, without caches."""
    live, ends = [((), 0.0)], []
    for length in range(1, max_tokens + 1):
        candidates = []
        for text, score in live:
            told = np.asarray(jax.nn.log_softmax(logits_after(model, [start, *text])))
            candidates += [(score + float(told[t]), (*text, t)) for t in range(len(told))]
        best = sorted(candidates, reverse=True)[: 2 * beams]
        ends += [(s / ((5 + length) / 6) ** length_penalty, t[:-1]) for s, t in best if t[-1] == END]
        ends = sorted(ends, reverse=True)[:beams]
        live = [(t, s) for s, t in best if t[-1] != END][:beams]
        attainable = live[0][1] / ((5 + max_tokens) / 6) ** length_penalty
        if len(ends) == beams and attainable <= ends[-1][0]:
            return ends[0]
    ends += [(score / ((5 + max_tokens) / 6) ** length_penalty, text) for text, score in live]
    return max(ends)


@pytest.mark.parametrize("beams, length_penalty, room", [(2, 0.0, 4), (4, 0.6, 4), (3, 1.5, 8), (4, 0.6, 64)])
def test_beams_with_caches_find_what_a_loop_over_lists_finds(beams, length_penalty, room, monkeypatch):
    monkeypatch.setattr(decoding, "FIRST_ROOM", room)
    model = make()
    starts = [0, 5, 9]
    texts, scores = search(model, starts, beams, 10, length_penalty)
    for row, start in enumerate(starts):
        score, text = plain_beams(model, start, beams, 10, length_penalty)
        assert scores[row] == pytest.approx(score, abs=1e-3)
        assert tuple(texts[row]) == text


def test_a_search_goes_on_while_a_longer_text_could_still_be_the_best():
    """By a script: the end is likely at once, but what goes on instead is sure of itself until its end."""
    sure, end = 2, 3
    at_first = jnp.log(jnp.array([0.05, 0.05, 0.4, 0.5]))
    later, at_last = (jnp.log(jnp.full(4, 0.01).at[token].set(0.97)) for token in (sure, end))

    def advance(tokens, positions, visible, caches, slot):
        place = positions[:, :, None]
        return jnp.where(place == 0, at_first, jnp.where(place < 8, later, at_last)), caches

    start = jnp.zeros(2, jnp.int32)
    found = search_beams(advance, lambda slots: [], start, beams=1, max_tokens=12, end_id=end, length_penalty=1.0)
    texts, scores = read_beams(jax.device_get(found))
    assert texts == [[sure] * 8] * 2
    np.testing.assert_allclose(scores, (np.log(0.4) + 8 * np.log(0.97)) / ((5 + 9) / 6), rtol=1e-5)


def test_one_beam_without_a_penalty_is_greedy():
    model = make()
    texts, scores = search(model, [0, 5, 9, 12], 1, 12)
    greedy = run(model, [[0], [5], [9], [12]], max_tokens=12)
    for row, text in enumerate(texts):
        said = greedy.tokens[row, : greedy.lengths[row]].tolist()
        assert text == [token for token in said if token != END]
        assert scores[row] == pytest.approx(float(greedy.scores[row]), abs=1e-3)


def test_more_beams_never_find_a_worse_text_here():
    model = make()
    best = [search(model, [0, 5, 9], beams, 10)[1] for beams in (1, 4)]
    for fewer, more in itertools.pairwise(best):
        assert (more >= fewer - 1e-4).all()


@pytest.mark.parametrize("many", [24, 640, 64 * 40])
def test_the_largest_are_those_of_top_k_also_where_blocks_are_looked_through(many):
    x = jax.random.normal(jax.random.key(2), (5, many)).at[1].set(jnp.arange(many)).at[2].set(-jnp.arange(many))
    values, places = decoding._largest(x, 8)
    expected, where = jax.lax.top_k(x, 8)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(places, where)
