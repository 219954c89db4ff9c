"""From a pretrained run to a fine-tuned one, as a user types it: what is loaded, frozen, kept, stopped and resumed."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import eval as eval_command
import predict
import tasks
import train
from errors import UserError
from models import parameters
from training.checkpoints import Checkpoints


def params_of(workdir: Path, checkpoint: str = "last") -> dict[str, np.ndarray]:
    _, model = tasks.restore(workdir, checkpoint, lambda line: None)
    return {path: np.asarray(leaf) for path, leaf in parameters.flatten(parameters.split(model)[1]).items()}


def records_of(workdir: Path, split: str = "train") -> list[dict]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["split"] == split]


FROZEN = (
    "--config.optimizer.rules=(('embeddings/.*', 'freeze'), ('encoder/layers/0/attention/.*', 'freeze'), ('.*', 1.0))"
)


def test_the_backbone_is_taken_over_and_the_account_says_so(finetune, pretrained, tmp_path, capsys):
    assert train.main([*finetune, "--config.train.steps=1", "--config.optimizer.learning_rate=1e-12"]) == 0
    printed = capsys.readouterr().out
    assert f"init_from {pretrained} (step 20): 21 parameters loaded · new: classifier (2), pooler (2)" in printed
    assert "left over: mlm_head (5)" in printed
    before, after = params_of(pretrained), params_of(tmp_path / "run")
    for path in before:
        if not path.startswith("mlm_head"):
            np.testing.assert_allclose(after[path], before[path], atol=1e-10, err_msg=path)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["init_from"] == kept["data"]["tokenizer"] == str(pretrained)
    assert kept["data"]["labels"] == ["builder", "watcher"]


def test_what_is_frozen_is_byte_identical_after_training_and_after_a_resume(finetune, pretrained, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main([*finetune, FROZEN, "--config.train.steps=10"]) == 0
    assert "trains " in capsys.readouterr().out
    assert train.main([*finetune, FROZEN, "--config.train.steps=20"]) == 0
    assert "goes on at step 10" in capsys.readouterr().out
    before, after = params_of(pretrained), params_of(run)
    for path, leaf in before.items():
        if path.startswith("mlm_head"):
            continue
        frozen = path.startswith(("embeddings", "encoder/layers/0/attention/"))
        assert (leaf.tobytes() == after[path].tobytes()) == frozen, path


def test_a_fine_tuned_run_goes_on_when_what_it_came_from_is_gone(finetune, pretrained, tmp_path):
    gone = tmp_path / "copy"
    shutil.copytree(pretrained, gone)
    words = [*finetune, f"--config.init_from={gone}"]
    assert train.main([*words, "--config.train.steps=10"]) == 0
    shutil.rmtree(gone)
    assert train.main([*words, "--config.train.steps=20"]) == 0
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 20


def test_an_origin_that_may_be_missing_is_said_and_the_choice_is_kept(finetune, pretrained, tmp_path, capsys):
    later = tmp_path / "later"
    words = [*finetune, f"--config.init_from={later}?", "--config.data.tokenizer=wordpiece:128"]
    assert train.main([*words, "--config.train.steps=10"]) == 0
    printed = capsys.readouterr().out
    assert f"no run in {later} yet" in printed and "starts from scratch" in printed
    shutil.copytree(pretrained, later)
    assert train.main([*words, "--config.train.steps=20"]) == 0, "it goes on from scratch, though there is a run now"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == ""
    fresh = [*words[:-1], f"--workdir={tmp_path / 'fresh'}"]
    assert train.main(fresh) == 0
    assert f"init_from {later} (step 20)" in capsys.readouterr().out


def test_the_best_checkpoint_is_kept_beside_the_last(finetune, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*finetune, "--config.train.steps=60", "--config.optimizer.learning_rate=5e-3", "--config.train.keep=1"]
    assert train.main([*words, "--config.train.best_metric=loss"]) == 0
    losses = {record["step"]: record["loss"] for record in records_of(run, "valid")}
    best = min(losses, key=losses.get)
    assert Checkpoints(run / "checkpoints").steps() == sorted({best, 60})
    assert f"at step {best}, kept" in capsys.readouterr().out
    assert eval_command.main(["eval.py", f"--workdir={run}", "--checkpoint=best"]) == 0
    result = json.loads((run / "eval" / "valid.json").read_text())
    assert result["step"] == best and result["loss"] == pytest.approx(losses[best], rel=1e-5)
    assert set(result["per_class"]) == {"builder", "watcher"}
    assert {path.name for path in (run / "eval").iterdir()} == {
        "valid.json", "valid.confusion_matrix.png", "valid.roc_curve.png",
    }  # fmt: skip


def test_a_run_that_follows_no_metric_has_no_best_checkpoint(finetune, tmp_path):
    assert train.main([*finetune, "--config.train.steps=10"]) == 0
    with pytest.raises(UserError, match="follows no metric"):
        tasks.restore(tmp_path / "run", "best")


def test_patience_ends_a_run_and_a_second_start_knows_it(finetune, tmp_path, capsys):
    words = [*finetune, "--config.train.steps=500", "--config.optimizer.learning_rate=1e-12"]
    words += ["--config.train.best_metric=accuracy", "--config.train.patience=2", "--config.train.keep=1"]
    assert train.main(words) == 0
    assert "stopped early: accuracy has not got better for 2 evaluations" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [10, 30]
    assert train.main(words) == 0
    assert "nothing left to do" in capsys.readouterr().out


PHASES = (
    "--config.optimizer.phases=((0, (('(embeddings|encoder)/.*', 'freeze'), ('.*', 1.0))),"
    " (7, (('embeddings/.*', 'freeze'), ('.*', 1.0))), (14, (('.*', 1.0),)))"
)


@pytest.mark.parametrize("stop", [7, pytest.param(10, marks=pytest.mark.slow)])
def test_phases_thaw_in_turn_and_a_resume_gives_the_same_bits(finetune, pretrained, tmp_path, capsys, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = [*finetune, PHASES, "--config.train.checkpoint_every=7"]
    assert train.main([*words, f"--workdir={whole}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("a new phase") == 2 and printed.count("compiled in") == 3
    assert train.main([*words, f"--workdir={parts}", f"--config.train.steps={stop}"]) == 0
    after = params_of(parts)
    before = params_of(pretrained)
    moved = {path for path in before if path in after and before[path].tobytes() != after[path].tobytes()}
    assert any("encoder" in path for path in moved) == (stop > 7)
    assert not any("embeddings" in path for path in moved)
    assert train.main([*words, f"--workdir={parts}"]) == 0
    expected, found = params_of(whole), params_of(parts)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(leaf, found[path], err_msg=path)


def test_lora_trains_small_adapters_beside_frozen_kernels(finetune, pretrained, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main([*finetune, "--config.lora.rank=2", "--config.optimizer.learning_rate=1e-2"]) == 0
    saved = Checkpoints(run / "checkpoints")
    _, shapes, _ = parameters.structure(tasks.restore(run)[0].build)
    from models.lora import Lora

    template = jax.eval_shape(Lora(rank=2).add, shapes, jax.random.key(0))
    held, _ = saved.restore_params(20, {"params": template, "model_state": {}})
    before, merged = params_of(pretrained), params_of(run)
    base = parameters.flatten({name: tree for name, tree in held.items() if name != "lora"})
    assert parameters.count(held["lora"]) == 2 * 2 * (32 + 32)
    for path, leaf in before.items():
        if path.startswith("mlm_head"):
            continue
        assert np.asarray(base[path]).tobytes() == leaf.tobytes(), path
        adapted = path.endswith(("query/kernel", "value/kernel"))
        assert (leaf.tobytes() != merged[path].tobytes()) == adapted, path


def test_predictions_are_labels_with_probabilities_or_features(finetune, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(finetune) == 0
    (tmp_path / "lines").write_text("the old king sees the river .\nthe bridge crosses the garden .\n")
    words = ["predict.py", f"--workdir={run}", f"--input={tmp_path / 'lines'}", f"--output={tmp_path / 'out'}"]
    assert predict.main(words) == 0
    answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert all(answer["label"] in answer["probabilities"] for answer in answers) and len(answers) == 2
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5) for answer in answers)
    assert predict.main([*words, "--features=cls"]) == 0
    assert len(json.loads((tmp_path / "out").read_text().splitlines()[0])["features"]) == 32


def test_a_head_goes_on_where_the_labels_are_the_same_and_begins_anew_where_not(finetune, labelled, tmp_path, capsys):
    first = tmp_path / "first"
    assert train.main([*finetune, f"--workdir={first}", "--config.data.labels=('watcher','builder')"]) == 0
    words = [*finetune, f"--config.init_from={first}"]
    assert train.main([*words, "--config.train.steps=1", f"--workdir={tmp_path / 'same'}"]) == 0
    assert "25 parameters loaded" in capsys.readouterr().out
    kept = json.loads((tmp_path / "same" / "config.json").read_text())
    assert kept["data"]["labels"] == ["watcher", "builder"], "the order that the head knows"
    other = tmp_path / "other.csv"
    other.write_text(labelled.read_text().replace(",builder", ",maker"))
    words = [*words, "--config.train.steps=1", f"--workdir={tmp_path / 'changed'}", f"--config.data.train=csv:{other}"]
    assert train.main(words) == 0
    printed = capsys.readouterr().out
    assert "is for other labels, and begins anew" in printed and "new: classifier (2)" in printed


@pytest.mark.slow  # of pretraining tests/test_devices.py looks at it on more meshes
def test_fine_tuning_on_eight_devices_gives_the_losses_and_metrics_of_one(finetune, tmp_path, command, simulated):
    words = [*finetune, "--config.train.log_every=1", "--config.train.steps=10"]
    assert train.main([*words, f"--workdir={tmp_path / 'one'}"]) == 0
    done = command(*words, f"--workdir={tmp_path / 'eight'}", env=os.environ | simulated(8))
    assert done.returncode == 0 and "8 × cpu" in done.stdout, done.stderr
    for split in ("train", "valid"):
        one, eight = (records_of(tmp_path / name, split) for name in ("one", "eight"))
        np.testing.assert_allclose([r["loss"] for r in one], [r["loss"] for r in eight], rtol=1e-4)
        assert [r["accuracy"] for r in one] == pytest.approx([r["accuracy"] for r in eight])
