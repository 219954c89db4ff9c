"""The multilayer perceptrons against loops in NumPy, and their promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from errors import UserError
from models import parameters
from models.mlp import MlpConfig, MlpForImageClassification, MlpForSequenceClassification, max_of_texts, mean_of_texts

TEXT = {"hidden_size": 6, "vocab_size": 20, "num_labels": 3}
IMAGE = {"hidden_size": 6, "image_size": 4, "channels": 2, "num_labels": 3}
# A row of three texts and padding, one of one text, and one of none.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [0] * 8], np.int32)
FIRST = np.array([[0, 3, 5], [0, 0, 0], [0, 0, 0]], np.int32)


@functools.cache
def make(head: type, dtype: str = "float32", **changes) -> nnx.Module:
    sizes = TEXT if head is MlpForSequenceClassification else IMAGE
    return head(MlpConfig(**{"dropout": 0.0} | sizes | changes), nnx.Rngs(1), dtype)


@jax.jit
def call(model, *arguments):
    return model(*arguments)


def batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(1, 20, SEGMENTS.shape).astype(np.int32)
    return {"tokens": tokens, "segment_ids": SEGMENTS}


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 4, 4, 2)).astype(np.float32)


def layered(params: dict, x: np.ndarray, activation: str) -> np.ndarray:
    """One vector through the hidden layers and the classifier, a number at a time."""
    layers = [params["encoder"]["layers"][str(i)] for i in range(len(params["encoder"]["layers"]))]
    for layer in [*layers, params["classifier"]]:
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        x = np.array([sum(x[i] * kernel[i, j] for i in range(len(x))) + bias[j] for j in range(len(bias))])
        if layer is not params["classifier"]:
            x = np.maximum(x, 0) if activation == "relu" else x / (1 + np.exp(-x))
    return x


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_logits_of_texts_are_those_of_a_loop(activation):
    model = make(MlpForSequenceClassification, num_layers=3, activation=activation)
    _, params, _ = parameters.split(model)
    inputs = batch()
    logits = np.asarray(call(model, inputs, FIRST))
    assert logits.shape == (3, 3, 3) and np.isfinite(logits).all()
    words = np.asarray(params["embeddings"]["word"]["embedding"])
    for row, text in [(0, 1), (0, 2), (0, 3), (1, 1)]:
        own = [words[token] for token in inputs["tokens"][row][SEGMENTS[row] == text]]
        expected = layered(params, sum(own) / len(own), activation)
        np.testing.assert_allclose(logits[row, text - 1], expected, rtol=1e-4, atol=1e-6)
    (states,) = model.hidden_states(inputs)
    np.testing.assert_array_equal(states, words[inputs["tokens"]])


def test_logits_of_pictures_are_those_of_a_loop():
    model = make(MlpForImageClassification)
    _, params, _ = parameters.split(model)
    logits = np.asarray(call(model, images()))
    for picture, ours in zip(images(), logits, strict=True):
        np.testing.assert_allclose(ours, layered(params, picture.ravel(), "relu"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [mean_of_texts, max_of_texts])
def test_each_text_is_pooled_by_itself_with_its_gradient(pool):
    hidden = np.random.default_rng(1).normal(size=(*SEGMENTS.shape, 5)).astype(np.float32) - 2
    pooled = np.asarray(pool(hidden, SEGMENTS, 3))
    gradient = np.asarray(jax.grad(lambda hidden: pool(hidden, SEGMENTS, 3).sum())(hidden))
    for row in range(3):
        for text in range(3):
            place = SEGMENTS[row] == text + 1
            own = hidden[row, place]
            if not len(own):
                assert not pooled[row, text].any(), "no text gives zeros"
                continue
            reduced = own.mean(0) if pool is mean_of_texts else own.max(0)
            share = np.full_like(own, 1 / len(own)) if pool is mean_of_texts else own == reduced
            np.testing.assert_allclose(pooled[row, text], reduced, rtol=1e-5)
            np.testing.assert_allclose(gradient[row, place], share, rtol=1e-5)
    assert not gradient[SEGMENTS == 0].any()


def test_texts_beyond_those_that_are_asked_for_are_left_out():
    model, inputs = make(MlpForSequenceClassification), batch()
    everything, fewer = (np.asarray(call(model, inputs, FIRST[:, :count])) for count in (3, 1))
    np.testing.assert_allclose(fewer, everything[:, :1], rtol=1e-5, atol=1e-6)


def test_no_text_of_a_row_sees_another_and_none_sees_padding():
    model, inputs = make(MlpForSequenceClassification), batch()
    before = np.asarray(call(model, inputs, FIRST))[0]
    for changed in (1, 2, 3, 0):
        tokens = np.where(inputs["segment_ids"] == changed, inputs["tokens"] % 19 + 1, inputs["tokens"])
        after = np.asarray(call(model, inputs | {"tokens": tokens}, FIRST))[0]
        for text in (1, 2, 3):
            assert np.array_equal(after[text - 1], before[text - 1]) == (text != changed)


@pytest.mark.parametrize("head", [MlpForSequenceClassification, MlpForImageClassification])
def test_dropout_follows_the_key_and_is_off_without_one(head):
    arguments = (batch(), FIRST) if head is MlpForSequenceClassification else (images(),)
    model = make(head, dropout=0.5)
    one, again, other = (np.asarray(call(model, *arguments, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(call(model, *arguments), call(make(head), *arguments))


@pytest.mark.parametrize("head", [MlpForSequenceClassification, MlpForImageClassification])
def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters(head):
    arguments = (batch(), FIRST) if head is MlpForSequenceClassification else (images(),)
    wide, narrow = make(head), make(head, "bfloat16")
    one, other = (call(model, *arguments) for model in (wide, narrow))
    assert one.dtype == other.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters.split(narrow)[1]))
    np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)
    assert np.abs(one - other).max() > 0


def products(jaxpr) -> int:
    """The floating-point operations of all matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner)
    return total


@pytest.mark.parametrize("num_layers", [1, 3])
def test_needed_operations_are_those_of_the_program(num_layers):
    text = make(MlpForSequenceClassification, num_layers=num_layers)
    row = {name: array[:1] for name, array in batch().items()}
    counted = products(jax.make_jaxpr(call)(text, row, FIRST[:1]).jaxpr)
    assert MlpForSequenceClassification.flops(text.config, 8, 3) == counted
    image = make(MlpForImageClassification, num_layers=num_layers)
    counted = products(jax.make_jaxpr(call)(image, images(1)).jaxpr)
    assert MlpForImageClassification.flops(image.config) == counted


def test_the_names_of_the_parameters_are_the_projects_one_language():
    text, image = (
        set(parameters.flatten(parameters.split(make(head))[1]))
        for head in (MlpForSequenceClassification, MlpForImageClassification)
    )
    assert text - image == {"embeddings/word/embedding"} and image < text
    assert "encoder/layers/1/kernel" in image and "classifier/bias" in image


def train(model: nnx.Module, labels: np.ndarray, *arguments, steps: int = 40) -> tuple[float, float]:
    """The first and the last loss of some steps of Adam, with dropout."""
    graphdef, params, _ = parameters.split(model)
    optimizer = optax.adam(0.01)

    def loss(params):
        logits = nnx.merge(graphdef, params, {})(*arguments, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value, gradients

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, value, gradients = step(params, state)
        losses.append(float(value))
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradients))
    return losses[0], losses[-1]


def test_eight_texts_are_learned():
    """Four in each of two rows; the label is whether a word occurs."""
    chance = np.random.default_rng(0)
    tokens = chance.integers(2, 20, (2, 16)).astype(np.int32)
    tokens[[0, 0, 1, 1], [1, 9, 6, 14]] = 1
    segments = np.tile(np.repeat(np.arange(1, 5), 4), (2, 1)).astype(np.int32)
    labels = (tokens == 1).reshape(2, 4, 4).any(-1).astype(int)
    inputs = {"tokens": tokens, "segment_ids": segments}
    first = np.tile(np.arange(0, 16, 4), (2, 1)).astype(np.int32)
    begin, end = train(make(MlpForSequenceClassification, hidden_size=16, dropout=0.1), labels, inputs, first)
    assert begin > 0.4 and end < 0.05


def test_eight_pictures_are_learned():
    begin, end = train(make(MlpForImageClassification, hidden_size=16, dropout=0.1), np.arange(8) % 3, images(8))
    assert begin > 0.4 and end < 0.05


BAD = [
    ("num_layers", 0),
    ("hidden_size", -3),
    ("activation", "step"),
    ("vocab_size", -1),
    ("image_size", -1),
    ("channels", -1),
    ("num_labels", -1),
    ("dropout", 1.0),
    ("initializer_range", float("nan")),
]


@pytest.mark.parametrize("field, value", BAD)
def test_a_wrong_value_is_refused_by_its_name(field, value):
    with pytest.raises(UserError, match=f"config.model.{field}: ") as error:
        MlpConfig(**{field: value})
    assert str(value) in str(error.value)
