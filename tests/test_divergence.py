"""What a run does about losses that are not finite, and about those that leap."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import tasks
import train
from data.pipeline import TrainBatches
from training.checkpoints import Checkpoints

# 80 steps that learn something, the log every 10; schedules and sizes alike in all tests: one compilation.
WORDS = [
    "--config.train.steps=80",
    "--config.train.eval_every=0",
    "--config.train.checkpoint_every=20",
    "--config.train.histogram_every=0",
    "--config.train.keep=9",
    "--config.optimizer.learning_rate=5e-3",
]


@pytest.fixture
def spoil(monkeypatch):
    """`spoil(numbers, change)`: the batches of these numbers, counted as they are read, are changed."""
    read = TrainBatches.__next__

    def spoil(numbers, change) -> None:
        def spoiled(self):
            rows, arrays = read(self)
            self.read = getattr(self, "read", self.get_state()["iterator"]["next_index"] - 1) + 1
            return rows, ({**arrays, **change(arrays)} if self.read - 1 in numbers else arrays)

        monkeypatch.setattr(TrainBatches, "__next__", spoiled)

    return spoil


def not_finite(arrays):
    return {"predict_weights": arrays["predict_weights"] * np.float32("nan")}


def surprising(arrays):
    return {"predict_ids": np.zeros_like(arrays["predict_ids"])}  # the padding, which never was an answer


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def parameters(run: Path) -> list[np.ndarray]:
    _, params, _ = tasks.restore_params(run, "last", lambda line: None)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def test_bad_steps_fewer_in_a_row_than_allowed_are_left_out_counted_and_told(smoke, tmp_path, spoil, capsys):
    spoil({3, 4, 17}, not_finite)
    assert train.main([*smoke, *WORDS, "--config.train.bad_steps=3"]) == 0
    counted = {record["step"]: record.get("bad_steps", 0) for record in metrics(tmp_path / "run")}
    assert counted == {10: 2, 20: 1, 30: 0, 40: 0, 50: 0, 60: 0, 70: 0, 80: 0}
    assert all(np.isfinite(leaf).all() for leaf in parameters(tmp_path / "run"))
    assert (
        "step      3: the loss is not finite, and left out (of 2 steps since the last log)" in capsys.readouterr().out
    )


def test_as_many_in_a_row_as_are_allowed_end_the_run_and_nothing_bad_is_saved(smoke, tmp_path, spoil, capsys):
    spoil({28, 29, 30}, not_finite)
    assert train.main([*smoke, *WORDS, "--config.train.bad_steps=3"]) == 3
    told = capsys.readouterr().err
    assert "diverged: loss or gradient of step 28 and of 2 behind it is not finite; its records: [" in told
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [20]


def test_a_run_goes_back_behind_bad_batches_and_does_not_see_them_again(smoke, tmp_path, spoil, capsys):
    spoil({33}, not_finite)
    assert train.main([*smoke, *WORDS, "--config.train.rollbacks=1"]) == 0
    printed = capsys.readouterr().out
    assert "back to step 20, without the batches since (1 times)" in printed
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records if record["split"] == "train"] == [*range(10, 81, 10)]
    position = Checkpoints(tmp_path / "run" / "checkpoints").position(80)
    assert position["data"]["iterator"]["next_index"] == 100, "20 batches, 30 to 40 among them, were left out"
    assert position["health"]["rollbacks"] == 1


def test_a_run_that_is_killed_after_it_went_back_ends_with_the_same_parameters(smoke, tmp_path, spoil):
    spoil({33}, not_finite)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for run in (whole, killed):
        assert train.main([*smoke, *WORDS, "--config.train.rollbacks=1", f"--workdir={run}"]) == 0
    for behind in (60, 80):
        for step in Checkpoints(killed / "checkpoints").steps():
            if step >= behind:
                (killed / "checkpoints" / str(step)).rename(tmp_path / f"gone-{behind}-{step}")
        assert train.main([*smoke, *WORDS, "--config.train.rollbacks=1", f"--workdir={killed}"]) == 0
        for a, b in zip(parameters(whole), parameters(killed), strict=True):
            np.testing.assert_array_equal(a, b)


def test_more_rollbacks_than_allowed_end_the_run(smoke, spoil):
    spoil(set(range(33, 90)), not_finite)
    assert train.main([*smoke, *WORDS, "--config.train.rollbacks=2"]) == 3


def test_a_leap_of_the_loss_is_counted_and_told_and_where_asked_the_run_goes_back(smoke, tmp_path, spoil, capsys):
    spoil({66}, surprising)
    told, back = tmp_path / "told", tmp_path / "back"
    assert train.main([*smoke, *WORDS, f"--workdir={told}"]) == 0
    assert [record["step"] for record in metrics(told) if record.get("loss_spikes")] == [70]
    assert "step     66: the loss leaps" in capsys.readouterr().out
    assert train.main([*smoke, *WORDS, "--config.train.rollbacks=1", f"--workdir={back}"]) == 0
    assert not [record for record in metrics(back) if record.get("loss_spikes")]
    assert "the loss leaped in step 66: back to step 60" in capsys.readouterr().out


def all_but_undone(arrays):
    """Half of the rows count against the other half: a finite loss with a gradient far above the usual."""
    weights = arrays["predict_weights"].copy()
    weights[::2] *= -0.9
    return {"predict_weights": weights}


def test_parameters_that_overflow_in_a_step_whose_loss_is_finite_are_never_saved(smoke, tmp_path, spoil, capsys):
    spoil({0}, all_but_undone)
    words = ["--config.optimizer.name=sgd", "--config.optimizer.schedule=constant", "--config.optimizer.clip_norm=0"]
    words += [
        "--config.optimizer.learning_rate=3e38",
        "--config.optimizer.warmup_steps=0",
        "--config.train.log_every=1",
    ]
    words += ["--config.train.checkpoint_every=1", "--config.optimizer.b1=0", "--config.optimizer.weight_decay=0"]
    assert train.main([*smoke, *words]) == 3
    assert "parameters or moments are not finite behind step 0" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == []


def test_parameters_that_overflow_are_never_saved(smoke, tmp_path, capsys):
    words = ["--config.optimizer.name=sgd", "--config.optimizer.schedule=constant", "--config.train.checkpoint_every=1"]
    words += ["--config.optimizer.learning_rate=3e38", "--config.optimizer.clip_norm=0", "--config.train.log_every=10"]
    assert train.main([*smoke, *words]) == 3
    assert "not finite" in capsys.readouterr().err
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in checkpoints.steps():
        _, params, _ = tasks.restore_params(tmp_path / "run", str(step), lambda line: None)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
