"""The encoder-decoder against transformers' MarianMT (tests/golden/make_marian.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import parameters
from models.decoding import Choice, Prompt, decode, read_beams, search_beams
from models.seq2seq import Seq2Seq, Seq2SeqConfig, decoder_config
from models.transformer import empty_caches
from training.rules import paths

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "marian.npz"))
SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "vocab_size": 96}
CONFIG = Seq2SeqConfig(**SIZES, max_positions=32, activation="silu", dropout=0.0, output_bias=True)
SOURCE, TARGET = GOLDEN["attention_mask"] > 0, GOLDEN["decoder_attention_mask"] > 0

NAMES = {
    "attention": "self_attn",
    "cross_attention": "encoder_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "out_proj",
    "attention_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_norm": "final_layer_norm",
}


def golden(path: str, kind: str = "weights") -> np.ndarray:
    """Transformers' array for one of our parameters."""
    if path == "embeddings/word/embedding":
        return GOLDEN[f"{kind}/model.shared.weight"]
    if path == "output_bias":
        return GOLDEN[f"{kind}/final_logits_bias"][0]
    stack, _, number, rest = path.split("/", 3)
    module, _, leaf = rest.rpartition("/")
    name = NAMES.get(module) or ".".join(NAMES[part] for part in module.split("/"))
    array = GOLDEN[f"{kind}/model.{stack}.layers.{number}.{name}.{'bias' if leaf == 'bias' else 'weight'}"]
    return array.T if leaf == "kernel" else array


@pytest.fixture(scope="module")
def loaded():
    graphdef, params, model_state = parameters.structure(lambda rngs: Seq2Seq(CONFIG, rngs))
    arrays = [jnp.asarray(golden(path)) for path in paths(params)]
    assert [a.shape for a in arrays] == [leaf.shape for leaf in jax.tree.leaves(params)]
    theirs = [name for name in GOLDEN if name.startswith("weights/") and "embed_positions" not in name]
    assert len(arrays) == len(theirs), "no parameter is left over"
    return graphdef, jax.tree.unflatten(jax.tree.structure(params), arrays), model_state


@pytest.fixture(scope="module")
def model(loaded):
    return nnx.merge(*loaded)


def counted(shape) -> np.ndarray:
    return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)


def inputs() -> dict[str, np.ndarray]:
    return {
        "source_tokens": GOLDEN["input_ids"],
        "source_segment_ids": GOLDEN["attention_mask"],
        "source_positions": counted(SOURCE.shape),
        "target_tokens": GOLDEN["decoder_input_ids"],
        "target_segment_ids": GOLDEN["decoder_attention_mask"],
        "target_positions": counted(TARGET.shape),
    }


def assert_close(ours, theirs, tolerance=1e-5):
    """Within `tolerance` of the largest magnitude: float32 sums in another order differ in their last digits."""
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def test_every_hidden_state_and_the_logits_are_those_of_transformers(model):
    for states, theirs, text in (
        (model.encode(inputs()), GOLDEN["encoder_hidden_states"], SOURCE),
        (model.hidden_states(inputs()), GOLDEN["decoder_hidden_states"], TARGET),
    ):
        assert len(states) == len(theirs) == 3
        for ours, other in zip(states, theirs, strict=True):
            assert_close(np.asarray(ours)[text], other[text])
    assert_close(np.asarray(model(inputs(), 96))[TARGET], GOLDEN["logits"][TARGET])


def test_the_loss_and_the_gradient_of_every_parameter_are_those_of_transformers(loaded):
    graphdef, params, model_state = loaded
    labels = np.maximum(GOLDEN["labels"], 0)

    def loss(params):
        losses, _ = nnx.merge(graphdef, params, model_state).cross_entropy(inputs(), labels, 96)
        return (losses * TARGET).sum() / TARGET.sum()

    assert float(jax.jit(loss)(params)) == pytest.approx(float(GOLDEN["loss"]), rel=1e-5)
    gradients = jax.jit(jax.grad(loss))(params)
    own = {path: leaf for path, leaf in parameters.flatten(gradients).items() if path != "output_bias"}
    largest = max(np.abs(golden(path, "grads")).max() for path in own)
    # PyTorch gives the padding's embedding no gradient from the embedding layers.
    own["embeddings/word/embedding"] = (
        own["embeddings/word/embedding"].at[0].set(golden("embeddings/word/embedding", "grads")[0])
    )
    for path, ours in own.items():
        np.testing.assert_allclose(ours, golden(path, "grads"), rtol=1e-4, atol=1e-5 * max(largest, 1.0), err_msg=path)


def steps_of(model):
    """What decoding takes; [PAD] and the end are never said, as in the golden arrays."""
    batch = inputs()
    memories = model.remember(batch)
    there = (batch["source_segment_ids"] > 0)[:, None, None, :]

    def advance(tokens, positions, visible, caches, slot):
        hidden, caches = model.advance(tokens, positions, visible, caches, slot, memories, there)
        return jnp.where(np.arange(96) < 2, -1e30, model.make_logits(96)(hidden)), caches

    return advance, lambda slots: empty_caches(decoder_config(CONFIG), 3, slots, model.dtype)


def test_greedy_decoding_says_what_that_of_transformers_says(model):
    prompt = Prompt(np.zeros((3, 1), np.int32), np.ones(3, np.int32))
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(lambda model: decode(*steps_of(model), prompt, Choice(), keys, max_tokens=10, end_id=1))(model)
    np.testing.assert_array_equal(found.tokens, GOLDEN["greedy"])


def test_beam_search_says_what_that_of_transformers_says(model):
    start = jnp.zeros(3, jnp.int32)
    found = search_beams(*steps_of(model), start, beams=4, max_tokens=10, end_id=1, length_penalty=0.0)
    np.testing.assert_array_equal(read_beams(jax.device_get(found))[0], GOLDEN["beams"])


OPTIONS = [{"position": position} for position in ("learned", "sinusoidal", "rope")]
OPTIONS += [{"norm": "pre"}, {"target_vocab_size": 40}, {"tied_head": False}, {"decoder_layers": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_pairs_do_not_see_each_other_and_cached_decoding_agrees(options):
    config = Seq2SeqConfig(**SIZES, max_positions=16, dropout=0.0, initializer_range=0.3, **options)
    model = Seq2Seq(config, nnx.Rngs(1))
    entries = options.get("target_vocab_size", 96)
    draw = np.random.default_rng(0)
    pairs = [(draw.integers(5, 96, m), draw.integers(5, entries, n)) for m, n in ((6, 4), (3, 5))]

    def side(texts, name):
        lengths = [len(text) for text in texts]
        return {
            f"{name}_tokens": np.concatenate(texts)[None].astype(np.int32),
            f"{name}_segment_ids": np.repeat(np.arange(1, len(texts) + 1), lengths)[None].astype(np.int32),
            f"{name}_positions": np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32),
        }

    call = jax.jit(lambda model, batch: model(batch, entries))
    together = side([s for s, _ in pairs], "source") | side([t for _, t in pairs], "target")
    logits = np.asarray(call(model, together))[0]
    begin = 0
    for source, target in pairs:
        alone = side([source], "source") | side([target], "target")
        expected = np.asarray(call(model, alone))[0]
        np.testing.assert_allclose(logits[begin : begin + len(target)], expected, rtol=1e-4, atol=1e-4)
        begin += len(target)

        memories, there = model.remember(alone), np.ones((1, 1, 1, len(source)), bool)
        caches = empty_caches(decoder_config(config), 1, 8, model.dtype)

        @jax.jit
        def advance(model, token, i, caches, memories, there):
            visible = (jnp.arange(8) <= i)[None, None, None]
            hidden, caches = model.advance(token[None, None], i[None, None], visible, caches, i, memories, there)
            return model.make_logits(entries)(hidden)[0, 0], caches

        for i, token in enumerate(target):
            found, caches = advance(model, np.int32(token), np.int32(i), caches, memories, there)
            np.testing.assert_allclose(found, expected[i], rtol=1e-4, atol=1e-4)
