import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from cli import config as configs
from data.pipeline import eval_batches
from errors import UserError
from models import parameters
from tasks.classification import Classification, ClassifyOptions
from tasks.problems import Multiclass, Multilabel
from tasks.text import open_split
from training.step import evaluate, make_eval_step

LOGITS = jnp.array([[1.2, -0.3, 0.5], [0.1, 2.0, -1.0], [-0.7, 0.4, 0.9], [3.0, -2.0, 0.2]])


@pytest.mark.parametrize(
    ("weights", "smoothing", "expected"),
    # torch 2.13: nn.functional.cross_entropy(logits, targets, weight=…, label_smoothing=…), in float64
    [
        ((1, 1, 1), 0.0, 1.220441319675579),
        ((1, 1, 1), 0.1, 1.2746079863422457),
        ((1, 2, 0.5), 0.0, 0.9740734535168849),
        ((1, 2, 0.5), 0.1, 1.0661933561315529),
    ],
)
def test_the_loss_of_one_class_is_that_of_torch(weights, smoothing, expected):
    targets = jnp.array([0, 2, 1, 0])
    losses, counts = Multiclass(None).losses(LOGITS, targets, np.array(weights, np.float32), smoothing)
    assert float(losses.sum() / counts.sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "smoothing", "expected"),
    # torch 2.13: nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=…), in float64
    [
        ((1, 1, 1), 0.0, 0.708942538553103),
        ((1, 2, 0.5), 0.0, 0.8700474051611057),
        ((1, 2, 0.5), 0.1, 0.8804282135463405),
    ],
)
def test_the_loss_of_several_labels_is_that_of_torch(weights, smoothing, expected):
    targets = jnp.array([[1.0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]])
    losses, _ = Multilabel(None).losses(LOGITS, targets, np.array(weights, np.float32), smoothing)
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-5)


def config_of(path, *words):
    arguments = ["train.py", "--config=configs/bert_classify.py:smoke", f"--config.data.train=csv:{path}"]
    return configs.from_command_line([*arguments, "--config.data.tokenizer=wordpiece:128", *words], "")[0]


def make_task(path, *words):
    return Classification.create(config_of(path, *words), lambda line: None)


@pytest.fixture(scope="module")
def task(labelled):
    return make_task(labelled)


@pytest.fixture(scope="module")
def model(task):
    return task.build(nnx.Rngs(1))


def evaluated(task, model, split="valid", batch_size=8):
    graphdef, params, model_state = parameters.split(model)
    step = jax.jit(make_eval_step(parameters.functional(graphdef, task.evaluate)))
    state = {"params": params, "model_state": model_state}
    return evaluate(step, state, eval_batches(task.rows(split), batch_size))


def test_labels_are_sorted_resolved_and_kept(task):
    assert task.config.data.labels == ("builder", "watcher")
    assert task.config.model.num_labels == 2
    assert json.loads(json.dumps(task.config.to_dict()))["data"]["labels"] == ["builder", "watcher"]


def test_the_order_that_is_given_is_kept(labelled):
    assert make_task(labelled, "--config.data.labels=('watcher','builder')").config.data.labels == (
        "watcher",
        "builder",
    )


def test_a_text_among_others_in_a_row_is_scored_as_it_is_alone(task, model, labelled):
    texts = [row["text"] for row in csv.DictReader(labelled.open())]
    alone = [result["probabilities"] for result in task.predict(model, iter(texts), ClassifyOptions(batch_size=16))]
    expected = sorted(tuple(probabilities.values()) for probabilities in alone)
    _, train = evaluated(task, model, "train")
    _, valid = evaluated(task, model, "valid")
    scores = np.concatenate([out["scores"][out["present"] > 0] for out in (train, valid)])
    assert len(scores) == len(texts), "every example exactly once"
    np.testing.assert_allclose(np.array(sorted(map(tuple, scores))), np.array(expected), atol=2e-6)
    assert (train["present"].sum(1) > 1).any(), "rows are shared"


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_metrics_are_those_of_scikit_learn_over_every_example_whatever_the_batch(task, model, labelled, batch_size):
    sums, outputs = evaluated(task, model, "train", batch_size)
    values = task.metrics(sums, outputs)
    present = outputs["present"] > 0
    scores, targets = outputs["scores"][present], outputs["targets"][present]
    assert values["accuracy"] == pytest.approx(accuracy_score(targets, scores.argmax(1)))
    assert values["accuracy"] == pytest.approx(sums["hits"] / sums["examples"])
    assert values["f1"] == pytest.approx(f1_score(targets, scores.argmax(1), zero_division=0))
    assert values["roc_auc"] == pytest.approx(roc_auc_score(targets, scores[:, 1]))
    assert values["loss"] == pytest.approx(-np.log(scores[np.arange(len(targets)), targets]).mean(), rel=1e-5)
    assert list(values) == task.metric_names()
    assert set(task.details(outputs)["per_class"]) == {"builder", "watcher"}


def test_pictures_are_pixels_of_confusion_and_roc(task, model):
    _, outputs = evaluated(task, model)
    pictures = task.pictures(outputs, None)
    assert set(pictures) == {"confusion_matrix", "roc_curve"}
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 and p.std() > 0 for p in pictures.values())


def test_balanced_class_weights_are_those_of_scikit_learn(labelled):
    task = make_task(labelled, "--config.data.class_weights=balanced")
    batches = list(eval_batches(task.rows("train"), 8))
    targets = np.concatenate([batch["targets"][batch["present"] > 0] for batch in batches])
    np.testing.assert_allclose(
        task.class_weights, compute_class_weight("balanced", classes=np.arange(2), y=targets), rtol=1e-6
    )


def test_class_weights_come_by_label(labelled):
    assert make_task(labelled, "--config.data.class_weights=watcher:2.5").class_weights.tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.data.class_weights=watcher"], "config.data.class_weights"),
        (["--config.data.class_weights=nobody:2"], "config.data.class_weights"),
        (["--config.data.class_weights=watcher:-1"], "config.data.class_weights"),
        (["--config.data.problem=binary"], "config.data.problem"),
        (["--config.data.truncation=middle"], "config.data.truncation"),
        (["--config.data.label_smoothing=1"], "config.data.label_smoothing"),
        (["--config.data.problem=regression", "--config.data.class_weights=balanced"], "config.data.class_weights"),
        (["--config.data.problem=regression"], "labelled.csv:2"),
        (["--config.data.labels=('builder','watcher','sleeper')"], "empty class"),
        (["--config.data.labels=('builder',)"], "'watcher'"),
        (["--config.model.num_labels=3"], "empty class"),
        (["--config.model.num_labels=1"], "out of range"),
        (["--config.data.label=topic"], "config.data.label"),
    ],
)
def test_what_cannot_be_meant_is_refused(labelled, words, said):
    with pytest.raises(UserError) as refused:
        make_task(labelled, *words)
    assert said in str(refused.value)


def test_an_evaluation_knows_neither_class_weights_nor_smoothing(labelled, task, model):
    weighted = make_task(labelled, "--config.data.class_weights=watcher:5", "--config.data.label_smoothing=0.3")
    plain, _ = evaluated(task, model)
    sums, _ = evaluated(weighted, model)
    assert sums == pytest.approx(plain)
    batch = next(eval_batches(weighted.rows("train"), 4))
    assert float(weighted.loss(model, batch, None)["weight"]) > float(task.loss(model, batch, None)["weight"])


def test_a_limit_takes_so_many_training_texts_and_leaves_the_held_out_ones_alone(labelled, task):
    limited = make_task(labelled, "--config.data.limit=30")
    assert "30 examples" in limited.rows("train").summary
    assert limited.rows("valid").summary.split(" · ")[0] == task.rows("valid").summary.split(" · ")[0]


def test_a_sample_that_lacks_a_label_still_knows_it(labelled, tmp_path):
    path = tmp_path / "rare.csv"
    path.write_text(labelled.read_text() + "a very rare sentence,zoologist\n")
    task = make_task(path, "--config.data.limit=30", f"--config.data.valid=csv:{path}")
    assert task.config.data.labels == ("builder", "watcher", "zoologist")


def test_a_step_names_the_records_that_stood_in_its_rows(task):
    rows = task.rows("train")
    assert rows.records(np.arange(rows.count)).tolist() == list(range(len(rows.records(np.arange(rows.count)))))


def test_long_texts_are_counted_when_they_are_cut(labelled):
    assert (
        "cut to tail"
        in make_task(labelled, "--config.data.seq_len=12", "--config.data.truncation=tail").rows("train").summary
    )


def write(path, header, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def test_a_regression_learns_in_units_of_its_deviation_and_speaks_in_the_users(tmp_path):
    draw = np.random.default_rng(0)
    numbers = draw.normal(3000, 200, 60)
    path = write(
        tmp_path / "prices.csv", ["text", "price"], [(f"a house of {i} rooms", n) for i, n in enumerate(numbers)]
    )
    task = make_task(path, "--config.data.problem=regression", "--config.data.label=price")
    model = task.build(nnx.Rngs(0))
    sums, outputs = evaluated(task, model, "train")
    values = task.metrics(sums, outputs)
    assert 0.5 < values["loss"] < 2, "of targets with mean 0 and deviation 1"
    assert values["mean_squared_error"] == pytest.approx(values["loss"] * task.config.data.target_scale**2, rel=1e-3)
    (answer,) = task.predict(model, iter(["a house of 3 rooms"]), ClassifyOptions())
    assert 2000 < answer["value"] < 4000 and "label" not in answer
    assert list(values) == task.metric_names() and set(task.pictures(outputs, None)) == {"predictions"}


def test_any_number_of_labels_can_be_given_to_a_text(tmp_path):
    rows = [
        (
            f"the film number {i}",
            ("funny" if i % 2 else "") + (";" if i % 6 == 3 else "") + ("long" if i % 3 == 0 else ""),
        )
        for i in range(60)
    ]
    path = write(tmp_path / "films.csv", ["text", "label"], rows)
    task = make_task(path, "--config.data.problem=multilabel", "--config.data.label_separator=;")
    model = task.build(nnx.Rngs(0))
    assert task.config.data.labels == ("funny", "long")
    sums, outputs = evaluated(task, model, "train")
    values = task.metrics(sums, outputs)
    present = outputs["present"] > 0
    guesses, targets = outputs["scores"][present] >= 0.5, outputs["targets"][present]
    assert values["accuracy"] == pytest.approx(accuracy_score(targets, guesses))
    assert list(values) == task.metric_names()
    (answer,) = task.predict(model, iter(["a film"]), ClassifyOptions())
    assert set(answer["probabilities"]) == {"funny", "long"} and isinstance(answer["labels"], list)


@pytest.fixture
def pairs(tmp_path):
    words = [f"w{i}" for i in range(8)]
    rows = [
        (f"{words[i % 8]} is here", f"{words[(i // 8) % 8]} is there", "same" if i % 8 == i // 8 % 8 else "other")
        for i in range(64)
    ]
    return write(tmp_path / "pairs.csv", ["first", "second", "label"], rows)


def test_pairs_are_one_example_of_two_types_and_predicted_with_a_tab_between(pairs):
    task = make_task(pairs, "--config.data.text=first", "--config.data.text_pair=second")
    batch = next(eval_batches(task.rows("train"), 4))
    assert set(np.unique(batch["token_types"])) == {0, 1}
    segment = batch["segment_ids"][0] == 1
    ids = batch["tokens"][0][segment]
    assert (ids == task.tokenizer.sep_id).sum() == 2 and ids[0] == task.tokenizer.cls_id
    model = task.build(nnx.Rngs(0))
    (answer,) = task.predict(model, iter(["w1 is here\tw2 is there"]), ClassifyOptions())
    assert answer["label"] in ("same", "other")
    with pytest.raises(UserError, match="tab"):
        list(task.predict(model, iter(["no second text"]), ClassifyOptions()))


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_features_are_the_last_hidden_states_of_the_text(task, model, kind):
    lines = ["the old king sees the river .", "the ship ."]
    results = list(task.predict(model, iter(lines), ClassifyOptions(features=kind, batch_size=2)))
    for line, result in zip(lines, results, strict=True):
        ids = task.tokenizer.encode_batch([line])[0]
        tokens = np.array([[task.tokenizer.cls_id, *ids, task.tokenizer.sep_id]])
        batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.arange(tokens.shape[1])[None]}
        hidden = np.asarray(model.hidden_states(batch)[-1])[0]
        expected = hidden[0] if kind == "cls" else hidden.mean(0)
        np.testing.assert_allclose(result["features"], expected, atol=2e-6)


def test_other_features_are_refused(task, model):
    with pytest.raises(UserError, match="cls, mean"):
        list(task.predict(model, iter(["a"]), ClassifyOptions(features="max")))


@pytest.mark.parametrize("name", ["bert", "lstm", "gru", "mlp", "cnn"])
def test_one_word_changes_the_model_and_packed_texts_are_answered_as_alone(labelled, name):
    task = make_task(labelled, f"--config.model.name={name}")
    model = task.build(nnx.Rngs(0))
    rows = task.rows("valid")
    _, outputs = task.evaluate(model, rows.load(np.arange(rows.count), np.zeros(rows.count, int)))
    packed = np.asarray(outputs["scores"])[outputs["present"] > 0][:, 0]
    texts = [record["text"] for record in open_split(task.config, "valid")]
    alone = [
        next(iter(answer["probabilities"].values())) for answer in task.predict(model, iter(texts), ClassifyOptions())
    ]
    assert len(packed) == len(alone) > 5
    np.testing.assert_allclose(np.sort(packed), np.sort(alone), atol=2e-6)
    (embedded,) = task.predict(model, iter(texts[:1]), ClassifyOptions(features="mean"))
    assert np.isfinite(embedded["features"]).all()
