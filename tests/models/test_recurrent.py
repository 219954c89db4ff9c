"""The recurrent networks against PyTorch's own numbers (tests/golden/make_recurrent.py), and their promises."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from errors import UserError
from models import parameters, recurrent
from models.recurrent import GruForSequenceClassification, LstmForSequenceClassification, RecurrentConfig

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "recurrent.npz"))
HEADS = {"lstm": LstmForSequenceClassification, "gru": GruForSequenceClassification}
SIZES = {"hidden_size": 5, "embedding_size": 6, "num_layers": 2, "vocab_size": 20, "num_labels": 3}
POOLS = ("last", "mean", "max")
CASES = [("lstm", "last"), ("lstm", "mean"), ("gru", "max")]  # PyTorch's numbers say the rest


def pack(rows: list[list[np.ndarray]], length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A batch with these texts in its rows, and the first positions."""
    batch = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    first = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, texts in enumerate(rows):
        at = 0
        for j, text in enumerate(texts):
            place = slice(at, at + len(text))
            batch["tokens"][i, place], batch["segment_ids"][i, place] = text, j + 1
            batch["positions"][i, place] = np.arange(len(text))
            first[i, j] = at
            at += len(text)
    return batch, first


@functools.cache
def make(kind: str, dtype: str = "float32", **changes) -> nnx.Module:
    fields = SIZES | {"dropout": 0.0, "initializer_range": 1.0} | changes
    return HEADS[kind](RecurrentConfig(**fields), nnx.Rngs(1), dtype)


@jax.jit
def call(model, batch, first, key=None):
    return model(batch, first, key)


@jax.jit
def hidden(model, batch):
    return model.hidden_states(batch)


def draw(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    return [chance.integers(1, 20, length).astype(np.int32) for length in lengths]


def golden(path: str, kind: str) -> np.ndarray:
    """PyTorch's array, of `lstm/weights` and so on, for one of our parameters."""
    if path == "embeddings/word/embedding":
        return GOLDEN[f"{kind}/embedding.weight"]
    _, _, number, direction, part, leaf = path.split("/")
    name = {"kernel": "weight", "bias": "bias"}[leaf] + {"input": "_ih", "recurrent": "_hh"}[part]
    return GOLDEN[f"{kind}/{name}_l{number}{'_reverse' if direction == 'backward' else ''}"].T


@pytest.fixture(scope="module", params=["lstm", "gru"])
def loaded(request):
    """The kind; graphdef, backbone with PyTorch's weights, classifier; PyTorch's texts, two rows of them, and where."""
    kind = request.param
    graphdef, params, _ = parameters.split(make(kind))
    leaves = parameters.flatten({name: part for name, part in params.items() if name != "classifier"})
    assert len(leaves) == sum(name.startswith(f"{kind}/weights/") for name in GOLDEN), "none is left over"
    backbone = parameters.graft(params, {path: jnp.asarray(golden(path, f"{kind}/weights")) for path in leaves})
    texts = [tokens[:length] for tokens, length in zip(GOLDEN["tokens"], GOLDEN["lengths"], strict=True)]
    batch, first = pack([texts[:2], texts[2:]], 16)
    return kind, graphdef, backbone, batch, first


def placed(arrays: np.ndarray) -> np.ndarray:
    """PyTorch's [texts, longest, …] in the places that the texts have in the rows."""
    texts = [array[:length] for array, length in zip(arrays, GOLDEN["lengths"], strict=True)]
    rows = [np.concatenate(texts[:2]), np.concatenate(texts[2:])]
    return np.stack([np.pad(row, ((0, 16 - len(row)), (0, 0))) for row in rows])


def test_the_states_of_packed_texts_are_those_of_pytorch_on_each_alone(loaded):
    kind, graphdef, params, batch, first = loaded
    model = nnx.merge(graphdef, params, {})
    states = hidden(model, batch)
    assert len(states) == 3
    text = batch["segment_ids"] > 0
    for ours, theirs in zip(states[1:], GOLDEN[f"{kind}/hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[text], placed(theirs)[text], rtol=1e-5, atol=1e-5)
    last = np.asarray(model._pooled(states[-1], batch["segment_ids"], first))
    np.testing.assert_allclose([*last[0, :2], *last[1]], GOLDEN[f"{kind}/last"], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_every_parameter_is_that_of_pytorch(loaded):
    kind, graphdef, params, batch, _ = loaded

    def loss(params):
        return (nnx.merge(graphdef, params, {}).hidden_states(batch)[-1] * placed(GOLDEN["weights"])).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    gradients.pop("classifier")
    for path, ours in parameters.flatten(gradients).items():
        theirs = golden(path, f"{kind}/grads")
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max(), err_msg=path)


@pytest.mark.parametrize("cell", [recurrent.LSTM, recurrent.GRU], ids=["lstm", "gru"])
def test_the_hand_written_backward_pass_is_that_of_automatic_differentiation(cell):
    """With padding in front of the texts and inside of one as well."""
    chance = np.random.default_rng(0)
    shapes = (4, cell.gates * 4), (cell.gates * 4,), (9, 2, cell.gates * 4), (9, 2, 4)
    *arguments, weights = (chance.normal(size=shape).astype(np.float32) for shape in shapes)
    present = np.array([[0, 1, 1, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]], bool).T[:, :, None]
    begins = np.array([[0, 1, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0, 0, 0, 1]], bool).T[:, :, None]

    @jax.jit
    def gradients(*arguments):
        return [
            jax.grad(lambda *a, f=f: (f(cell, *a, begins, present) * weights).sum(), (0, 1, 2))(*arguments)
            for f in (recurrent.recur, lambda *a: recurrent._loop(*a)[0][0])
        ]

    for mine, theirs in zip(*gradients(*arguments), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, pool", CASES)
def test_no_text_of_a_row_sees_another(kind, pool):
    model, texts = make(kind, pool=pool), draw(6, 4, 3)
    batch, first = pack([texts], 16)
    before = np.asarray(call(model, batch, first))[0]
    for j in range(3):
        changed = [text % 19 + 1 if i == j else text for i, text in enumerate(texts)]
        after = np.asarray(call(model, pack([changed], 16)[0], first))[0]
        assert [np.array_equal(*pair) for pair in zip(after, before, strict=True)] == [i != j for i in range(3)]


@pytest.mark.parametrize("kind, pool", CASES)
def test_padding_and_company_do_not_matter(kind, pool):
    model, texts = make(kind, pool=pool), draw(6, 4, 3)
    together = np.asarray(call(model, *pack([texts], 16)))[0]
    alone, first = pack([[text] for text in texts], 11)
    alone["tokens"][alone["segment_ids"] == 0] = 7
    np.testing.assert_allclose(np.asarray(call(model, alone, first))[:, 0], together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
def test_a_text_is_pooled_as_the_config_says(bidirectional):
    texts = draw(6, 4)
    batch, first = pack([texts], 12)
    for pool in POOLS:
        model = make("gru", pool=pool, bidirectional=bidirectional)
        states = np.asarray(hidden(model, batch)[-1])[0]
        np.testing.assert_array_equal(states[10:, :5], states[[9, 9], :5], "padding leaves the state as it is")
        for j, place in enumerate((slice(0, 6), slice(6, 10))):
            own = states[place]
            vector = {"last": np.append(own[-1, :5], own[0, 5:]), "mean": own.mean(0), "max": own.max(0)}[pool]
            logits = vector @ np.asarray(model.classifier.kernel[...]) + np.asarray(model.classifier.bias[...])
            np.testing.assert_allclose(np.asarray(call(model, batch, first))[0, j], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, pool", CASES)
def test_logits_and_gradients_are_finite_where_rows_have_no_texts(kind, pool):
    batch, first = pack([draw(4, 3, 2), draw(5), []], 10)
    model = make(kind, pool=pool, dropout=0.3)
    graphdef, params, _ = parameters.split(model)

    def loss(params):
        logits = nnx.merge(graphdef, params, {})(batch, first, jax.random.key(0))
        return (logits**2).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert logits.shape == (3, 3, 3) and np.isfinite(np.asarray(logits)).all()
    for path, gradient in parameters.flatten(gradients).items():
        assert np.isfinite(np.asarray(gradient)).all() and np.asarray(gradient).any(), path


def test_dropout_follows_the_key_and_is_off_without_one():
    model = make("lstm", dropout=0.3)
    batch, first = pack([draw(6, 4)], 10)
    one, again, other = (np.asarray(call(model, batch, first, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(call(model, batch, first), call(make("lstm"), batch, first))


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters():
    batch, first = pack([draw(20, 12)], 32)
    for kind in HEADS:
        wide, narrow = (make(kind, dtype, num_layers=1) for dtype in ("float32", "bfloat16"))
        one, other = (call(model, batch, first) for model in (wide, narrow))
        assert one.dtype == other.dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters.split(narrow)[1]))
        np.testing.assert_allclose(one, other, atol=0.03)
        assert jax.eval_shape(hidden, narrow, batch)[-1].dtype == jnp.bfloat16


def products(jaxpr) -> int:
    """The floating-point operations of all matrix products in a program, of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * products(inner)
    return total


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
@pytest.mark.parametrize("kind", HEADS)
def test_needed_operations_are_those_of_the_program(kind, bidirectional, pool):
    config = RecurrentConfig(**SIZES, bidirectional=bidirectional, pool=pool)
    graphdef, params, _ = parameters.structure(lambda rngs: HEADS[kind](config, rngs))
    inputs = pack([draw(6, 4, 3)], 16)
    program = jax.make_jaxpr(lambda params: nnx.merge(graphdef, params, {})(*inputs))(params)
    assert HEADS[kind].flops(config, 16, 3) == products(program.jaxpr)


def test_fresh_weights_remember_and_keep_lengths():
    flat = parameters.flatten(parameters.split(make("lstm"))[1])
    for path, leaf in flat.items():
        if path.endswith("input/bias"):
            np.testing.assert_array_equal(np.asarray(leaf).reshape(4, 5), np.eye(4)[1][:, None].repeat(5, 1))
        elif path.endswith("bias"):
            assert not np.asarray(leaf).any(), path
        elif path.endswith("recurrent/kernel"):
            for gate in np.split(np.asarray(leaf), 4, axis=1):
                np.testing.assert_allclose(gate @ gate.T, np.eye(5), atol=1e-5, err_msg=path)
    assert {path.split("/")[0] for path in flat} == {"embeddings", "encoder", "classifier"}
    assert not np.asarray(make("gru").encoder.layers[0].forward.input.bias[...]).any()


@pytest.mark.parametrize("kind", HEADS)
def test_the_order_of_words_is_learned(kind):
    """Eight texts of the same words; the label says which of two comes first."""
    chance = np.random.default_rng(0)
    texts = [chance.permutation(np.arange(1, 7)).astype(np.int32) for _ in range(8)]
    labels = np.array([[int(np.flatnonzero(text == 1)[0] < np.flatnonzero(text == 2)[0]) for text in texts]])
    assert 0 < labels.sum() < 8
    batch, first = pack([texts], 48)
    graphdef, params, _ = parameters.split(make(kind, num_layers=1))
    optimizer = optax.adam(0.03)

    def loss(params):
        logits = nnx.merge(graphdef, params, {})(batch, first, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(run, _):
        value, gradients = jax.value_and_grad(loss)(run[0])
        updates, state = optimizer.update(gradients, run[1])
        return (optax.apply_updates(run[0], updates), state), value

    losses = jax.jit(lambda run: jax.lax.scan(step, run, length=40)[1])((params, optimizer.init(params)))
    assert losses[0] > 0.4 and losses[-1] < 0.05


BAD = {"num_layers": 0, "hidden_size": 0, "embedding_size": -1, "vocab_size": -1, "num_labels": -1}
BAD |= {"dropout": 1.0, "initializer_range": 0.0, "pool": "first"}


@pytest.mark.parametrize("field, value", BAD.items())
def test_a_wrong_value_is_refused_by_its_name(field, value):
    with pytest.raises(UserError, match=f"config.model.{field}: ") as error:
        RecurrentConfig(**{field: value})
    assert str(value) in str(error.value)
