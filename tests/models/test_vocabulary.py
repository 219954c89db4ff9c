"""The vocabulary's layer against plain log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import vocabulary
from models.vocabulary import vocabulary_cross_entropy, vocabulary_logits

ENTRIES, WIDTH = 40, 8
HIDDEN, TABLE, BIAS = (
    jax.random.normal(jax.random.fold_in(jax.random.key(0), i), shape)
    for i, shape in enumerate([(3, 5, WIDTH), (ENTRIES, WIDTH), (ENTRIES,)])
)
LABELS = jnp.asarray(np.random.default_rng(0).integers(0, 37, (3, 5)))
WEIGHTS = jax.random.uniform(jax.random.key(9), (3, 5))


def reference(hidden, table, bias, size):
    logits = (hidden @ table.T + bias)[..., :size]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[..., None], -1)[..., 0]
    return -chosen, logits.argmax(-1) == LABELS


@pytest.mark.parametrize("size", [ENTRIES, 37])
def test_loss_hits_and_gradients_are_those_of_log_softmax_over_the_words(size):
    loss, hit = vocabulary_cross_entropy(HIDDEN, TABLE, BIAS, size, LABELS)
    expected, right = reference(HIDDEN, TABLE, BIAS, size)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(hit, right)

    def total(function):
        return lambda h, t, b: (function(h, t, b)[0] * WEIGHTS).sum()

    ours = jax.grad(total(lambda h, t, b: vocabulary_cross_entropy(h, t, b, size, LABELS)), (0, 1, 2))
    theirs = jax.grad(total(lambda h, t, b: reference(h, t, b, size)), (0, 1, 2))
    for mine, other in zip(ours(HIDDEN, TABLE, BIAS), theirs(HIDDEN, TABLE, BIAS), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_logits_are_the_products_and_spare_entries_are_never_likely():
    logits = vocabulary_logits(HIDDEN, TABLE, BIAS, 37)
    np.testing.assert_allclose(logits[..., :37], (HIDDEN @ TABLE.T + BIAS)[..., :37], rtol=1e-5)
    assert (jax.nn.softmax(logits)[..., 37:] == 0).all()


def test_huge_logits_neither_overflow_nor_lose_the_gradient():
    loss, _ = vocabulary_cross_entropy(1e4 * HIDDEN, TABLE, BIAS, ENTRIES, LABELS)
    gradient = jax.grad(lambda h: vocabulary_cross_entropy(1e4 * h, TABLE, BIAS, ENTRIES, LABELS)[0].sum())(HIDDEN)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all() and (loss >= 0).all()


def test_bfloat16_activations_give_a_float32_loss_and_gradients_of_their_own_kinds():
    narrow = HIDDEN.astype(jnp.bfloat16)
    loss, _ = vocabulary_cross_entropy(narrow, TABLE, BIAS, ENTRIES, LABELS)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference(HIDDEN, TABLE, BIAS, ENTRIES)[0], rtol=0.05, atol=0.1)
    for_hidden, for_table = jax.grad(
        lambda h, t: vocabulary_cross_entropy(h, t, BIAS, ENTRIES, LABELS)[0].sum(), (0, 1)
    )(narrow, TABLE)
    assert for_hidden.dtype == jnp.bfloat16 and for_table.dtype == jnp.float32


@pytest.mark.parametrize("size", [ENTRIES, 37])
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
def test_a_smoothed_target_is_spread_over_the_words_alone_and_so_is_its_gradient(size, bias):
    def plain(hidden, table):
        logits = (hidden @ table.T + (0 if bias is None else bias))[..., :size]
        target = 0.9 * jax.nn.one_hot(LABELS, size) + 0.1 / size
        return -(target * jax.nn.log_softmax(logits)).sum(-1)

    def ours(hidden, table):
        return vocabulary_cross_entropy(hidden, table, bias, size, LABELS, 0.1)[0]

    np.testing.assert_allclose(ours(HIDDEN, TABLE), plain(HIDDEN, TABLE), rtol=1e-5)
    gradients = [jax.grad(lambda h, t, f=f: (f(h, t) * WEIGHTS).sum(), (0, 1))(HIDDEN, TABLE) for f in (ours, plain)]
    for mine, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
def test_logits_that_are_too_large_are_made_in_parts_with_the_same_loss_hits_and_gradients(bias, monkeypatch):
    def everything():
        def total(hidden, table):
            loss, hit = vocabulary_cross_entropy(hidden, table, bias, 37, LABELS, 0.1)
            return (loss * WEIGHTS).sum(), (loss, hit)

        gradients, outputs = jax.grad(total, (0, 1), has_aux=True)(HIDDEN, TABLE)
        return *gradients, *outputs

    whole = everything()
    program = jax.jit(lambda h: vocabulary_cross_entropy(h, TABLE, bias, 37, LABELS)[0])
    assert "while" not in program.lower(HIDDEN).as_text()
    monkeypatch.setattr(vocabulary, "LARGEST", 4 * ENTRIES * 4)  # 15 rows: 5 parts of 3
    assert vocabulary._parts(15, ENTRIES) == 5
    for part, one in zip(everything(), whole, strict=True):
        np.testing.assert_allclose(part, one, rtol=1e-5, atol=1e-6)


def test_parts_are_as_few_as_fit_and_equal(monkeypatch):
    monkeypatch.setattr(vocabulary, "LARGEST", 1000 * 4)
    assert vocabulary._parts(100, 10) == 1
    assert vocabulary._parts(101, 10) == 101, "a prime number of rows"
    assert vocabulary._parts(120, 100) == 12
    assert vocabulary._parts(7, 5000) == 7, "a row is the least"
