"""The convolutional networks against loops in NumPy, and their promises."""

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
from models.cnn import CnnConfig, CnnForImageClassification, CnnForSequenceClassification

TEXT = {"hidden_size": 4, "vocab_size": 20, "num_labels": 3, "widths": (1, 2, 5), "initializer_range": 1.0}
IMAGE = {"hidden_size": 3, "num_layers": 4, "image_size": 11, "channels": 2, "num_labels": 3}
# A row of three texts and padding, the shortest less than a convolution is wide; one of one text, and one of none.
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 0, 0], [1] * 12, [0] * 12], np.int32)
FIRST = np.array([[0, 6, 9], [0, 0, 0], [0, 0, 0]], np.int32)


@functools.cache
def make(head: type, dtype: str = "float32", **changes) -> nnx.Module:
    sizes = TEXT if head is CnnForSequenceClassification else IMAGE
    return head(CnnConfig(**{"dropout": 0.0} | sizes | changes), nnx.Rngs(1), dtype)


@jax.jit
def call(model, *arguments):
    return model(*arguments)


def batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(1, 20, SEGMENTS.shape).astype(np.int32)
    return {"tokens": tokens, "segment_ids": SEGMENTS}


def images(count: int = 2, size: int = 11) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, size, size, 2)).astype(np.float32)


def arguments_of(head: type) -> tuple:
    return (batch(), FIRST) if head is CnnForSequenceClassification else (images(),)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in parameters.flatten(parameters.split(model)[1]).items()}


def text_layer(weights: dict[str, np.ndarray], prefix: str, text: np.ndarray) -> np.ndarray:
    """[length, inputs] of one text alone to [length, features], a token at a time."""
    features = []
    for i, width in enumerate(TEXT["widths"]):
        kernel, bias = (weights[f"{prefix}/convolutions/{i}/{leaf}"] for leaf in ("kernel", "bias"))
        around = np.pad(text, (((width - 1) // 2, width // 2), (0, 0)))
        windows = [around[t : t + width] for t in range(len(text))]
        features.append([np.maximum((window[:, :, None] * kernel).sum((0, 1)) + bias, 0) for window in windows])
    return np.concatenate([np.array(feature) for feature in features], axis=1)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_logits_of_packed_texts_are_those_of_a_loop_over_each_alone(num_layers):
    model, inputs = make(CnnForSequenceClassification, num_layers=num_layers), batch()
    weights = arrays(model)
    logits = np.asarray(call(model, inputs, FIRST))
    states = jax.jit(lambda model: model.hidden_states(inputs))(model)
    assert logits.shape == (3, 3, 3) and np.isfinite(logits).all() and len(states) == num_layers + 1
    for row, text in [(0, 1), (0, 2), (0, 3), (1, 1)]:
        place = SEGMENTS[row] == text
        x = weights["embeddings/word/embedding"][inputs["tokens"][row, place]]
        for i in range(num_layers):
            x = text_layer(weights, f"encoder/layers/{i}", x)
            np.testing.assert_allclose(np.asarray(states[i + 1])[row, place], x, rtol=1e-4, atol=1e-5)
        expected = x.max(0) @ weights["classifier/kernel"] + weights["classifier/bias"]
        np.testing.assert_allclose(logits[row, text - 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [11, 3])
def test_logits_of_pictures_are_those_of_a_loop(size):
    model = make(CnnForImageClassification, image_size=size)
    weights = arrays(model)
    logits = np.asarray(call(model, images(size=size)))
    for picture, ours in zip(images(size=size), logits, strict=True):
        x, sizes = picture, []
        for i in range(4):
            kernel, bias = (weights[f"encoder/layers/{i}/{leaf}"] for leaf in ("kernel", "bias"))
            side = len(x)
            around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            x = np.zeros((side, side, len(bias)))
            for row in range(side):
                for column in range(side):
                    window = around[row : row + 3, column : column + 3, :, None]
                    x[row, column] = np.maximum((window * kernel).sum((0, 1, 2)) + bias, 0)
            sizes.append(x.shape[1:])
            if side >= 4 and i < 3:
                half = side // 2
                blocks = [
                    [x[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((0, 1)) for c in range(half)] for r in range(half)
                ]
                x = np.array(blocks)
        assert sizes == ([(11, 3), (5, 6), (2, 12), (2, 12)] if size == 11 else [(3, 3)] * 4)
        expected = x.mean((0, 1)) @ weights["classifier/kernel"] + weights["classifier/bias"]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_no_text_of_a_row_sees_another_and_none_sees_padding():
    model, inputs = make(CnnForSequenceClassification, num_layers=2), batch()
    before = np.asarray(call(model, inputs, FIRST))[0]
    for changed in (1, 2, 3, 0):
        tokens = np.where(inputs["segment_ids"] == changed, inputs["tokens"] % 19 + 1, inputs["tokens"])
        after = np.asarray(call(model, inputs | {"tokens": tokens}, FIRST))[0]
        for text in (1, 2, 3):
            assert np.array_equal(after[text - 1], before[text - 1]) == (text != changed)


@pytest.mark.parametrize("head", [CnnForSequenceClassification, CnnForImageClassification])
def test_dropout_follows_the_key_and_is_off_without_one(head):
    arguments = arguments_of(head)
    model = make(head, dropout=0.3)
    one, again, other = (np.asarray(call(model, *arguments, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(call(model, *arguments), call(make(head), *arguments))


def test_dropout_lies_on_the_words_between_the_layers_and_before_the_classifier():
    model, inputs, key = make(CnnForSequenceClassification, num_layers=2, dropout=0.3), batch(), jax.random.key(1)
    words, first, second = model.hidden_states(inputs, jax.random.fold_in(key, 0))
    one, two = model.encoder.layers
    assert 0.15 < (np.asarray(words) == 0).mean() < 0.45
    np.testing.assert_allclose(first, one(words, SEGMENTS), rtol=1e-5, atol=1e-5)
    assert np.abs(second - two(first, SEGMENTS)).max() > 1e-2
    assert np.abs(model(inputs, FIRST, key) - model.classifier(model._pooled(second, SEGMENTS, FIRST))).max() > 1e-2


@pytest.mark.parametrize("head", [CnnForSequenceClassification, CnnForImageClassification])
def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters(head):
    arguments = arguments_of(head)
    wide, narrow = make(head), make(head, "bfloat16")
    one, other = (call(model, *arguments) for model in (wide, narrow))
    assert one.dtype == other.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters.split(narrow)[1]))
    np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)
    assert np.abs(one - other).max() > 0


def products(jaxpr) -> int:
    """The floating-point operations of all matrix products and convolutions in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        elif equation.primitive.name == "conv_general_dilated":
            window = math.prod(equation.invars[1].aval.shape[:3])  # height, width, inputs
            total += 2 * window * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner)
    return total


@pytest.mark.parametrize("num_layers", [1, 2])
def test_needed_operations_on_a_row_are_those_of_the_program(num_layers):
    model = make(CnnForSequenceClassification, num_layers=num_layers)
    row = {name: array[:1] for name, array in batch().items()}
    counted = products(jax.make_jaxpr(call)(model, row, FIRST[:1]).jaxpr)
    assert CnnForSequenceClassification.flops(model.config, 12, 3) == counted


@pytest.mark.parametrize("size", [11, 3])
def test_needed_operations_on_a_picture_are_those_of_the_program(size):
    model = make(CnnForImageClassification, image_size=size)
    counted = products(jax.make_jaxpr(call)(model, images(1, size)).jaxpr)
    assert CnnForImageClassification.flops(model.config) == counted


def test_the_names_of_the_parameters_are_the_projects_one_language():
    text, image = (set(arrays(make(head))) for head in (CnnForSequenceClassification, CnnForImageClassification))
    assert {"embeddings/word/embedding", "encoder/layers/0/convolutions/2/kernel", "classifier/kernel"} < text
    assert {"encoder/layers/3/kernel", "classifier/bias"} < image
    assert {path.split("/")[0] for path in text | image} == {"embeddings", "encoder", "classifier"}


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


def test_the_order_of_words_is_learned():
    """Eight texts of the same words; the label says which of two comes first."""
    chance = np.random.default_rng(0)
    tokens = np.stack([chance.permutation(np.arange(1, 7)) for _ in range(8)]).astype(np.int32)
    labels = (np.argmax(tokens == 1, axis=1) < np.argmax(tokens == 2, axis=1)).astype(int)
    assert 0 < labels.sum() < 8
    inputs = {"tokens": tokens.reshape(2, 24), "segment_ids": np.tile(np.repeat(np.arange(1, 5), 6), (2, 1))}
    first = np.tile(np.arange(0, 24, 6), (2, 1)).astype(np.int32)
    model = make(CnnForSequenceClassification, hidden_size=8, dropout=0.1)
    begin, end = train(model, labels.reshape(2, 4), inputs, first)
    assert begin > 0.4 and end < 0.05


def test_eight_pictures_are_learned():
    model = make(CnnForImageClassification, hidden_size=8, num_layers=3, image_size=8, dropout=0.1)
    begin, end = train(model, np.arange(8) % 3, images(8, size=8))
    assert begin > 0.4 and end < 0.1


BAD = [
    ("num_layers", 0),
    ("hidden_size", 0),
    ("widths", ()),
    ("widths", (3, 0)),
    ("widths", (2.5,)),
    ("activation", "step"),
    ("vocab_size", -1),
    ("image_size", -1),
    ("channels", -1),
    ("num_labels", -1),
    ("dropout", -0.5),
    ("initializer_range", 0.0),
]


@pytest.mark.parametrize("field, value", BAD)
def test_a_wrong_value_is_refused_by_its_name(field, value):
    with pytest.raises(UserError, match=f"config.model.{field}: ") as error:
        CnnConfig(**{field: value})
    assert str(value) in str(error.value)
