"""GPT-2 against transformers' own numbers (tests/golden/make_gpt2.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import parameters
from models.decoding import Choice, Prompt, decode
from models.gpt import GptConfig, GptForCausalLM
from models.transformer import empty_caches
from training.rules import paths

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "gpt2.npz"))
SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "vocab_size": 96}
CONFIG = GptConfig(**SIZES, max_positions=24, dropout=0.0, attention_dropout=0.0)
TEXT = GOLDEN["attention_mask"] > 0

# Our path -> Hugging Face's name. Query, key and value are one array there, and kernels lie as ours.
NAMES = {
    "embeddings/word": "wte",
    "embeddings/position": "wpe",
    "attention_norm": "ln_1",
    "attention/output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
    "decoder/norm": "ln_f",
}


def golden(path: str, kind: str = "weights") -> np.ndarray:
    """Transformers' array for one of our parameters."""
    module, _, leaf = path.rpartition("/")
    prefix = ""
    if module.startswith("decoder/layers/"):
        _, _, number, module = module.split("/", 3)
        prefix = f"h.{number}."
    leaf = "bias" if leaf == "bias" else "weight"
    for part, name in enumerate(("query", "key", "value")):
        if module == f"attention/{name}":
            return np.split(GOLDEN[f"{kind}/transformer.{prefix}attn.c_attn.{leaf}"], 3, axis=-1)[part]
    return GOLDEN[f"{kind}/transformer.{prefix}{NAMES[module]}.{leaf}"]


@pytest.fixture(scope="module")
def loaded():
    """graphdef, parameters and model state with transformers' weights."""
    graphdef, params, model_state = parameters.structure(lambda rngs: GptForCausalLM(CONFIG, rngs))
    arrays = [jnp.asarray(golden(path)) for path in paths(params)]
    assert [a.shape for a in arrays] == [leaf.shape for leaf in jax.tree.leaves(params)]
    theirs = sum(array.size for name, array in GOLDEN.items() if name.startswith("weights/"))
    assert sum(array.size for array in arrays) == theirs, "no parameter is left over"
    return graphdef, jax.tree.unflatten(jax.tree.structure(params), arrays), model_state


@pytest.fixture(scope="module")
def model(loaded):
    return nnx.merge(*loaded)


def inputs() -> dict[str, np.ndarray]:
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (3, 24))
    return {"tokens": GOLDEN["input_ids"], "segment_ids": GOLDEN["attention_mask"], "positions": positions}


def assert_close(ours, theirs, tolerance=1e-5):
    """Within `tolerance` of the largest magnitude: float32 sums in another order differ in their last digits."""
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def test_every_hidden_state_and_the_logits_are_those_of_transformers(model):
    states = model.hidden_states(inputs())
    assert len(states) == len(GOLDEN["hidden_states"]) == 3
    for ours, theirs in zip(states, GOLDEN["hidden_states"], strict=True):
        assert_close(np.asarray(ours)[TEXT], theirs[TEXT])
    assert_close(np.asarray(model(inputs(), 96))[TEXT], GOLDEN["logits"][TEXT])


def test_the_loss_and_the_gradient_of_every_parameter_are_those_of_transformers(loaded):
    graphdef, params, model_state = loaded
    behind = TEXT[:, 1:]
    weights = np.pad(behind, ((0, 0), (0, 1)))
    labels = np.roll(GOLDEN["input_ids"], -1, axis=1)

    def loss(params):
        losses, _ = nnx.merge(graphdef, params, model_state).cross_entropy(inputs(), labels, 96)
        return (losses * weights).sum() / weights.sum()

    assert float(jax.jit(loss)(params)) == pytest.approx(float(GOLDEN["loss"]), rel=1e-5)
    gradients = jax.jit(jax.grad(loss))(params)
    largest = max(np.abs(golden(path, "grads")).max() for path in paths(gradients))
    for path, ours in zip(paths(gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(ours, golden(path, "grads"), rtol=1e-4, atol=1e-5 * max(largest, 1.0), err_msg=path)


def test_greedy_decoding_says_what_that_of_transformers_says(model):
    def advance(tokens, positions, visible, caches, slot):
        hidden, caches = model.advance(tokens, positions, visible, caches, slot)
        return model.make_logits(96)(hidden), caches

    def make_caches(slots):
        return empty_caches(CONFIG, 3, slots, model.dtype)

    prompt = Prompt(GOLDEN["input_ids"][:, :8], np.full(3, 8))
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(lambda: decode(advance, make_caches, prompt, Choice(), keys, max_tokens=12, end_id=-1))()
    np.testing.assert_array_equal(found.tokens, GOLDEN["continued"])


def test_what_ends_a_branch_begins_smaller_the_deeper_the_model_is():
    config = GptConfig(num_layers=8, hidden_size=64, vocab_size=64, max_positions=8)
    model = GptForCausalLM(config, nnx.Rngs(0))
    for layer in model.decoder.layers:
        for begins, ends in ((layer.attention.value, layer.attention.output), (layer.mlp.up, layer.mlp.down)):
            ratio = np.std(ends.kernel[...]) / np.std(begins.kernel[...])
            np.testing.assert_allclose(ratio, (2 * 8) ** -0.5, rtol=0.05)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope"])
def test_no_token_sees_one_behind_it_or_another_document(norm, position):
    config = GptConfig(**SIZES, max_positions=16, norm=norm, position=position, initializer_range=0.3)
    model = GptForCausalLM(config, nnx.Rngs(1))
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, 96, n).astype(np.int32) for n in (7, 4)]
    packed = {
        "tokens": np.concatenate([*texts, [0]])[None].astype(np.int32),
        "segment_ids": np.repeat([1, 2, 0], [7, 4, 1])[None].astype(np.int32),
        "positions": np.concatenate([np.arange(7), np.arange(4), [0]])[None].astype(np.int32),
    }
    call = jax.jit(lambda model, batch: model(batch, 96))
    together = np.asarray(call(model, packed))[0]
    begin = 0
    for text in texts:
        for length in range(1, len(text) + 1):
            filling = 12 - length
            alone = {
                "tokens": np.pad(text[:length], (0, filling), constant_values=9)[None],
                "segment_ids": np.repeat([1, 0], [length, filling])[None].astype(np.int32),
                "positions": np.arange(12, dtype=np.int32)[None],
            }
            last = np.asarray(call(model, alone))[0, length - 1]
            np.testing.assert_allclose(together[begin + length - 1], last, rtol=1e-4, atol=1e-5)
        begin += len(text)
