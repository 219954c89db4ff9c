import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score

import eval as evaluation
import predict
import train
from cli import config as configs
from data.pipeline import eval_batches
from errors import UserError
from models import parameters
from tasks.image_classification import ImageClassification, mix
from training.step import evaluate, make_eval_step

QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An archive of 120 pictures, 8 × 8 with colours: bright above or below, or on one side."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 90, (120, 8, 8, 3))
    labels = np.arange(120) % 3
    images[labels == 0, :4] += 120
    images[labels == 1, 4:] += 120
    images[labels == 2, :, :4] += 120
    path = tmp_path_factory.mktemp("pictures") / "bright.npz"
    np.savez(path, image=images.astype(np.uint8), label=np.array(["above", "below", "beside"])[labels])
    return path


def config_of(path, *words):
    arguments = ["train.py", "--config=configs/vit_classify.py:smoke", f"--config.data.train=npz:{path}", *words]
    return configs.from_command_line(arguments, "")[0]


def make_task(path, *words) -> ImageClassification:
    return ImageClassification.create(config_of(path, *words), lambda line: None)


def test_the_data_decide_size_channels_labels_and_normalization(pictures):
    task = make_task(pictures)
    model, data = task.config.model, task.config.data
    assert (model.image_size, model.channels, model.num_labels) == (8, 3, 3)
    assert data.labels == ("above", "below", "beside")
    rows = task.rows("train")
    pixels = rows.load(np.arange(rows.count), np.zeros(rows.count, int))
    task.config.data.augment = ""
    normal = np.asarray(make_task(pictures, "--config.data.augment=").normalized(pixels["pixels"]))
    own = make_task(pictures, "--config.data.augment=").rows("train")
    normal = np.asarray(task.normalized(own.load(np.arange(own.count), np.zeros(own.count, int))["pixels"]))
    assert np.allclose(normal.mean((0, 1, 2)), 0, atol=1e-4) and np.allclose(normal.std((0, 1, 2)), 1, atol=1e-3)


def test_every_picture_is_trained_on_or_held_out_with_its_own_label(pictures):
    task = make_task(pictures, "--config.data.augment=")
    with np.load(pictures) as archive:
        expected = {bytes(image): str(label) for image, label in zip(archive["image"], archive["label"], strict=True)}
    seen = {}
    for split in ("train", "valid"):
        rows = task.rows(split)
        batch = rows.load(np.arange(rows.count), np.zeros(rows.count, int))
        for pixels, target in zip(batch["pixels"], batch["targets"], strict=True):
            seen[bytes(pixels)] = task.config.data.labels[target]
    assert seen == expected


def test_only_training_pictures_are_augmented_and_anew_in_each_epoch(pictures):
    task = make_task(pictures, "--config.data.augment=crop:2,flip")
    train_rows, valid_rows = task.rows("train"), task.rows("valid")
    rows = np.arange(20)
    first, again, later = (train_rows.load(rows, np.full(20, epoch))["pixels"] for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, later)
    assert np.array_equal(valid_rows.load(rows, rows * 0)["pixels"], task.evaluated[:20])


def test_an_evaluation_is_that_of_a_loop_over_pictures(pictures):
    task = make_task(pictures)
    graphdef, _, _ = parameters.structure(task.build)
    params, _ = parameters.initialize(task.build, jax.random.key(1))
    rows = task.rows("valid")
    step = jax.jit(make_eval_step(parameters.functional(graphdef, task.evaluate)))
    sums, outputs = evaluate(step, {"params": params}, eval_batches(rows, 7))
    values = task.metrics(sums, outputs)

    model = task.build(parameters.nnx.Rngs(0))
    model = parameters.nnx.merge(graphdef, params)
    batch = rows.load(np.arange(rows.count), np.zeros(rows.count, int))
    logits = np.asarray(model(task.normalized(batch["pixels"])), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), batch["targets"]]
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert values["accuracy"] == accuracy_score(batch["targets"], logits.argmax(1))
    pictures_drawn = task.pictures(outputs, model)
    assert {"confusion_matrix", "mistakes"} <= set(pictures_drawn)


def test_the_mistakes_that_are_drawn_are_the_surest_ones(pictures, monkeypatch):
    task = make_task(pictures)
    rows = task.rows("valid")
    drawn = {}
    monkeypatch.setattr(
        "evaluation.pictures.picture_grid", lambda pixels, titles: drawn.update(pixels=pixels, titles=titles)
    )
    monkeypatch.setattr("evaluation.pictures.render", lambda figure: figure)
    scores = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.1, 0.7], [0.0, 0.0, 0.0]])
    outputs = {"scores": scores, "targets": np.array([0, 1, 0, 0]), "index": np.array([0, 1, 2, -1])}
    task.pictures(outputs, None)
    assert drawn["titles"] == ["beside 0.70, not above", "above 0.60, not below"]
    batch = rows.load(np.array([2, 1]), np.zeros(2, int))
    assert np.array_equal(drawn["pixels"], batch["pixels"])


# ---- mixing


def test_mixup_adds_a_picture_and_its_partner_by_the_share_that_is_told():
    images = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    mixed, partner, share = mix(images, 0.4, 0.0, jax.random.key(1))
    by_hand = share[:, None, None, None] * images + (1 - share)[:, None, None, None] * images[partner]
    assert np.allclose(mixed, by_hand, atol=1e-6)
    assert (share > 0).all() and (share < 1).all() and len(np.unique(share)) == 6


def test_cutmix_pastes_one_box_and_tells_how_much_is_left():
    own, other = jnp.zeros((1, 9, 9, 1)), jnp.ones((1, 9, 9, 1))
    for seed in range(30):
        mixed, _, share = mix(jnp.concatenate([own, other]), 0.0, 1.0, jax.random.key(seed))
        pasted = np.asarray(mixed[0, :, :, 0]) == 1
        assert 1 - pasted.mean() == pytest.approx(float(share[0]), abs=1e-6)
        down, across = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        assert pasted.sum() == len(down) * len(across), "a rectangle"


def test_with_both_ways_each_takes_about_half_of_the_pictures():
    images = jnp.concatenate([jnp.zeros((200, 8, 8, 1)), jnp.ones((200, 8, 8, 1))])
    mixed, _, _ = mix(images, 1.0, 1.0, jax.random.key(0))
    flat = np.asarray(mixed).reshape(400, -1)
    cut = ((flat == 0) | (flat == 1)).all(1)
    assert 0.4 < cut.mean() < 0.6


def test_a_mixed_loss_is_divided_between_both_labels(pictures):
    task = make_task(pictures, "--config.data.mixup=0.5", "--config.data.augment=")
    batch = task.rows("train").load(np.arange(8), np.zeros(8, int))
    seen = {}

    def model(images, key):
        seen["images"] = images
        return jnp.tile(jnp.array([2.0, 0.5, -1.0]), (8, 1))

    key = jax.random.key(3)
    sums = task.loss(model, batch, key)
    mixed, partner, share = mix(task.normalized(batch["pixels"]), 0.5, 0.0, jax.random.fold_in(key, 0))
    assert np.allclose(seen["images"], mixed)
    of_class = np.log(np.exp([2.0, 0.5, -1.0]).sum()) - np.array([2.0, 0.5, -1.0])
    targets = batch["targets"]
    expected = share * of_class[targets] + (1 - share) * of_class[targets[np.asarray(partner)]]
    assert float(sums["loss"]) == pytest.approx(float(expected.sum()), rel=1e-5)


# ---- as a user runs it


def test_a_run_learns_evaluates_and_names_pictures(pictures, tmp_path, capsys):
    workdir = tmp_path / "run"
    words = ["--config=configs/vit_classify.py:smoke", f"--workdir={workdir}", f"--config.data.train=npz:{pictures}"]
    words += ["--config.train.steps=60", "--config.train.eval_every=60", "--config.data.augment=crop:1"]
    words += ["--config.optimizer.learning_rate=1e-2", "--config.train.checkpoint_every=60"]
    assert train.main(["train.py", *words]) == 0
    assert evaluation.main(["eval.py", f"--workdir={workdir}", f"--data=npz:{pictures}"]) == 0
    (written,) = workdir.glob("eval/data-*.json")
    assert json.loads(written.read_text())["accuracy"] > 0.9
    assert list(workdir.glob("eval/*confusion_matrix.png"))

    with np.load(pictures) as archive:
        images, labels = archive["image"][:6], archive["label"][:6]
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    (tmp_path / "paths.txt").write_text("\n".join(map(str, paths)))
    capsys.readouterr()
    assert predict.main(["predict.py", f"--workdir={workdir}", f"--input={tmp_path / 'paths.txt'}"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["path"] for answer in answers] == list(map(str, paths))
    assert sum(answer["label"] == label for answer, label in zip(answers, labels, strict=True)) >= 5
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4) for answer in answers)
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all("tokens_per_second" not in record for record in logged)
    assert logged[0]["examples_per_second"] > 0


@pytest.mark.parametrize("name", ["vit", "resnet", "mlp", "cnn"])
def test_one_word_changes_the_model_and_each_gives_features(pictures, tmp_path, name):
    task = make_task(pictures, f"--config.model.name={name}")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    model = task.build(parameters.nnx.Rngs(0))
    (answer,) = task.predict(model, iter([str(tmp_path / "a.png")]), task.Options(features=True))
    assert len(answer["features"]) == model.classifier.kernel.shape[0] and np.isfinite(answer["features"]).all()
    (answer,) = task.predict(model, iter([str(tmp_path / "a.png")]), task.Options())
    assert answer["label"] in task.config.data.labels


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.model.patch_size=3"], ("config.model.patch_size", "3 does not divide")),
        (["--config.model.image_size=16"], ("config.model.image_size", "16", "have 8")),
        (["--config.model.num_labels=2"], ("config.model.num_labels", "2")),
        (["--config.data.labels=('above','below')"], ("config.data.labels", "'beside'")),
        (["--config.data.mean=(0.5,)", "--config.data.std=(0.5,)"], ("config.data.mean", "3 number")),
        (["--config.data.mixup=-1"], ("config.data.mixup", "-1")),
        (["--config.data.augment=flop"], ("config.data.augment", "flip")),
        (["--config.model.pool=max"], ("config.model.pool", "'max'")),
        (["--config.model.name=bert"], ("config.model.name", "no head for config.task=image_classification")),
        (["--config.data.train=pydocs"], ("config.data.train", "npz, folder, tfds, digits")),
        (["--config.data.label=class"], ("config.data.label", "'class'")),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(pictures, words, said):
    with pytest.raises(UserError) as error:
        make_task(pictures, *words).rows("train")
    for part in said:
        assert part in str(error.value), str(error.value)


def test_other_sizes_than_those_learned_are_refused_in_an_evaluation(pictures, tmp_path):
    task = make_task(pictures)
    np.savez(tmp_path / "large.npz", image=np.zeros((4, 16, 16, 3), np.uint8), label=["above"] * 4)
    with pytest.raises(UserError, match="16 × 16 × 3"):
        task.rows("valid", f"npz:{tmp_path / 'large.npz'}")
