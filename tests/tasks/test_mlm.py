import jax
import numpy as np
import pytest
from flax import nnx

from cli import config as configs
from data.pipeline import eval_batches
from models import parameters
from tasks.mlm import FillMaskOptions, MaskedLM
from training.step import evaluate, make_eval_step


@pytest.fixture(scope="module")
def task(corpus):
    words = [
        "train.py",
        "--config=configs/bert_mlm.py:smoke",
        f"--config.data.train=text:{corpus}",
        "--config.data.tokenizer=wordpiece:128",
    ]
    return MaskedLM.create(configs.from_command_line(words, "")[0], lambda line: None)


@pytest.fixture(scope="module")
def model(task):
    return task.build(nnx.Rngs(0))


def test_the_sizes_that_follow_from_the_data_are_resolved_into_the_config(task):
    assert task.config.model.vocab_size == -(-task.tokenizer.vocab_size // 64) * 64
    assert task.config.model.max_positions == task.config.data.seq_len
    assert (task.config.model.num_heads, task.config.model.intermediate_size) == (1, 128)


@pytest.mark.parametrize("variant", ["tiny", "mini", "small", "base"])
def test_every_variant_takes_a_step_that_keeps_shapes_and_float32_parameters(corpus, variant, check_step):
    """By shapes alone, nothing is computed; base computes in bfloat16."""
    words = ["train.py", f"--config=configs/bert_mlm.py:{variant}", f"--config.data.train=text:{corpus}"]
    config, *_ = configs.from_command_line([*words, "--config.data.tokenizer=wordpiece:128"], "")
    task = MaskedLM.create(config, lambda line: None)
    check_step(task)


def test_no_held_out_document_is_in_training(task, corpus):
    rows = {split: task.rows(split) for split in ("train", "valid")}
    texts = {"train": set(), "valid": set()}
    for split, found in rows.items():
        for batch in eval_batches(found, 8):
            originals = batch["tokens"].copy()
            for i, weights in enumerate(batch["predict_weights"]):
                chosen = batch["predict_positions"][i][weights > 0]
                originals[i, chosen] = batch["predict_ids"][i][weights > 0]
            for row, segments in zip(originals, batch["segment_ids"], strict=True):
                pieces = [tuple(row[segments == s].tolist()) for s in range(1, segments.max() + 1)]
                texts[split] |= {piece for piece in pieces if len(piece) == 32}  # the short ones are alike by chance
    assert len(texts["valid"]) > 20 and len(texts["train"]) > 400
    assert not texts["valid"] & texts["train"]


def test_masks_change_with_the_epoch_in_training_and_never_in_evaluation(task):
    train, valid = task.rows("train"), task.rows("valid")
    rows = np.arange(8)
    epochs = [train.load(rows, np.full(8, epoch)) for epoch in (0, 0, 1)]
    assert np.array_equal(epochs[0]["tokens"], epochs[1]["tokens"])
    assert not np.array_equal(epochs[0]["tokens"], epochs[2]["tokens"])
    first, second = (list(eval_batches(task.rows("valid"), 8)) for _ in range(2))
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(first, second, strict=True))
    assert valid.count == sum((batch["segment_ids"].max(1) > 0).sum() for batch in first)


def brute_force(task, model, batch):
    """Sums by a loop over every prediction, with plain NumPy."""
    logits = np.asarray(model(batch, batch["predict_positions"], task.tokenizer.vocab_size), np.float64)[
        ..., : task.tokenizer.vocab_size
    ]
    loss = weight = correct = 0.0
    for i in range(logits.shape[0]):
        for j in range(logits.shape[1]):
            if batch["predict_weights"][i, j]:
                z = logits[i, j]
                loss += np.log(np.exp(z - z.max()).sum()) + z.max() - z[batch["predict_ids"][i, j]]
                correct += z.argmax() == batch["predict_ids"][i, j]
                weight += 1
    return loss, weight, correct


def test_loss_and_accuracy_are_those_of_a_loop_over_the_hidden_tokens(task, model):
    batch = task.rows("train").load(np.arange(8), np.zeros(8, int))
    sums = {name: float(value) for name, value in task.loss(model, batch, None).items()}
    loss, weight, correct = brute_force(task, model, batch)
    assert sums["loss"] == pytest.approx(loss, rel=1e-5)
    assert (sums["weight"], sums["correct"]) == (weight, correct)
    assert sums["tokens"] == (batch["segment_ids"] > 0).sum()
    metrics = task.metrics(sums)
    assert metrics["loss"] == pytest.approx(loss / weight, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(loss / weight), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(correct / weight)


def test_rows_without_a_hidden_token_weigh_nothing(task, model):
    batch = task.rows("train").load(np.array([-1, -1]), np.zeros(2, int))
    sums = task.loss(model, batch, None)
    assert float(sums["weight"]) == float(sums["loss"]) == float(sums["tokens"]) == 0
    assert np.isfinite(list(task.metrics({name: float(v) for name, v in sums.items()}).values())).all()


def test_an_evaluation_does_not_depend_on_the_batch_size(task, model):
    graphdef, params, model_state = parameters.split(model)
    step = jax.jit(make_eval_step(parameters.functional(graphdef, task.evaluate)))
    state = {"params": params, "model_state": model_state}
    rows = task.rows("valid")
    results = [evaluate(step, state, eval_batches(rows, size))[0] for size in (3, 8)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_packed_documents_train_as_they_would_alone(task, model):
    """The whole path: one packed row has the loss of its documents, each in a row of its own."""
    rows = task.rows("train")
    batch = rows.load(np.arange(rows.count), np.zeros(rows.count, int))
    row = int(batch["segment_ids"].max(1).argmax())
    assert batch["segment_ids"][row].max() > 1
    alone = {
        name: np.zeros((batch["segment_ids"][row].max(), 32), np.int32)
        for name in ("tokens", "segment_ids", "positions")
    }
    predictions = {
        name: np.zeros((len(alone["tokens"]), batch[name].shape[1]), batch[name].dtype)
        for name in batch
        if "predict" in name
    }
    for document in range(len(alone["tokens"])):
        places = np.flatnonzero(batch["segment_ids"][row] == document + 1)
        for name in ("tokens", "positions"):
            alone[name][document, : len(places)] = batch[name][row, places]
        alone["segment_ids"][document, : len(places)] = 1
        mine = np.isin(batch["predict_positions"][row], places) & (batch["predict_weights"][row] > 0)
        count = mine.sum()
        predictions["predict_positions"][document, :count] = batch["predict_positions"][row, mine] - places[0]
        predictions["predict_ids"][document, :count] = batch["predict_ids"][row, mine]
        predictions["predict_weights"][document, :count] = 1
    packed = task.loss(model, {name: x[row : row + 1] for name, x in batch.items()}, None)
    single = task.loss(model, alone | predictions, None)
    for name in ("loss", "weight", "correct", "tokens"):
        assert float(packed[name]) == pytest.approx(float(single[name]), rel=1e-5), name


def test_a_step_names_the_records_that_stood_in_its_rows(task):
    rows = task.rows("train")
    everything = rows.records(np.arange(rows.count))
    source_size = everything.max() + 1
    assert everything.tolist() == list(range(source_size))
    assert len(rows.records(np.array([0]))) >= 1


def test_fillers_are_the_likeliest_of_the_softmax(task, model):
    lines = ["the old [MASK] sees the [MASK] .", "no mask here", "[MASK]"] * 3
    results = list(task.predict(model, iter(lines), FillMaskOptions(top_k=3, batch_size=2)))
    assert [result["text"] for result in results] == lines
    assert [len(result["masks"]) for result in results[:3]] == [2, 0, 1]
    encoded = task.tokenizer.encode_batch(lines[:1], keep_mask=True)[0]
    tokens = np.array([[task.tokenizer.cls_id, *encoded, task.tokenizer.sep_id]])
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.arange(tokens.shape[1])[None]}
    where = np.flatnonzero(tokens[0] == task.tokenizer.mask_id)
    logits = np.asarray(model(batch, where[None], task.tokenizer.vocab_size), np.float64)[
        0, :, : task.tokenizer.vocab_size
    ]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for mask, expected in zip(results[0]["masks"], probabilities, strict=True):
        best = np.argsort(-expected)[:3]
        assert [filler["token"] for filler in mask] == [task.tokenizer.token(i) for i in best]
        np.testing.assert_allclose([filler["probability"] for filler in mask], expected[best], atol=2e-6)


def test_a_line_that_is_too_long_says_how_much_was_cut(task, model):
    line = "the king " * 40 + "[MASK]"
    result = next(task.predict(model, iter([line]), FillMaskOptions()))
    assert result["cut_tokens"] > 0
