"""What becomes of BatchNorm's statistics in a run: trained, frozen, restored, taken over."""

import json

import jax
import numpy as np
import pytest

import tasks
import train
from models import parameters
from training.checkpoints import Checkpoints

RESNET = "--config.model.name=resnet"
SIZES = ["--config.model.depths=(1,1)", "--config.model.widths=(8,16)", "--config.model.stem_width=8"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    generator = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = generator.integers(0, 100, (96, 8, 8, 1)) + 120 * labels[:, None, None, None]
    path = tmp_path_factory.mktemp("pictures") / "two.npz"
    np.savez(path, image=images.astype(np.uint8), label=labels)
    return path


def words(pictures, workdir, *more) -> list[str]:
    fixed = ["--config=configs/vit_classify.py:smoke", f"--config.data.train=npz:{pictures}", RESNET, *SIZES]
    return ["train.py", *fixed, f"--workdir={workdir}", "--config.train.steps=6", "--config.train.log_every=6", *more]


def saved(workdir) -> dict[str, np.ndarray]:
    """Parameters and statistics by path, without the average."""
    task, params, state = tasks.restore_params(workdir, "last", lambda line: None)
    return {path: np.asarray(leaf) for path, leaf in (parameters.flatten(params) | parameters.flatten(state)).items()}


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "resnet"
    assert train.main(words(pictures, workdir, "--config.train.ema=0")) == 0
    return workdir


def test_training_moves_the_statistics_and_they_are_saved(trained):
    found = saved(trained)
    assert np.abs(found["embeddings/norm/mean"]).max() > 0 and (found["embeddings/norm/variance"] != 1).all()


def test_a_run_from_these_weights_takes_the_statistics_over_and_frozen_norms_keep_them(pictures, trained, tmp_path):
    rules = "(('embeddings/.*','freeze'),('encoder/stages/0/.*','freeze'),('.*',1.0))"
    more = [f"--config.init_from={trained}", f"--config.optimizer.rules={rules}", "--config.train.ema=0"]
    assert train.main(words(pictures, tmp_path / "fine", *more)) == 0
    before, after = saved(trained), saved(tmp_path / "fine")
    for path in before:
        frozen = path.startswith(("embeddings/", "encoder/stages/0/"))
        assert np.array_equal(before[path], after[path]) == frozen, path


def test_a_frozen_norm_goes_by_its_statistics_in_training_too(pictures, trained):
    task, model = tasks.restore(trained, "last", lambda line: None)
    graphdef, params, state = parameters.split(model)
    batch = task.rows("train").load(np.arange(8), np.zeros(8, int))

    def loss_with(trained_paths):
        forward = parameters.functional(graphdef, task.loss, trained=trained_paths)
        sums, new = forward(params, state, batch, jax.random.key(0))
        return float(sums["loss"]), new

    evaluated = float(task.evaluate(model, batch)[0]["loss"])
    assert loss_with({"classifier/kernel"})[0] == pytest.approx(evaluated, rel=1e-5)
    assert loss_with(set(parameters.flatten(params)))[0] != pytest.approx(evaluated, rel=1e-3)
    unchanged = jax.tree.map(np.array_equal, loss_with({"classifier/kernel"})[1], state)
    assert all(jax.tree.leaves(unchanged))


def test_a_resumed_run_has_the_parameters_statistics_and_average_of_one_that_was_not_stopped(pictures, tmp_path):
    more = ["--config.train.ema=0.9", "--config.optimizer.schedule=constant", "--config.optimizer.warmup_share=0"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train.main(words(pictures, whole, *more)) == 0
    assert train.main([*words(pictures, halves, *more), "--config.train.steps=3"]) == 0
    assert train.main(words(pictures, halves, *more)) == 0
    one, other = (Checkpoints(folder / "checkpoints") for folder in (whole, halves))
    template = {"params": parameters.structure(tasks.restore(whole, "last", lambda line: None)[0].build)[1]}
    template["model_state"] = parameters.structure(tasks.restore(whole, "last", lambda line: None)[0].build)[2]
    for a, b in zip(
        jax.tree.leaves(one.restore_params(6, template)),
        jax.tree.leaves(other.restore_params(6, template)),
        strict=True,
    ):
        assert np.array_equal(a, b)
    last = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (whole, halves)]
    assert last[0]["loss"] == last[1]["loss"]
