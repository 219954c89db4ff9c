"""The commands as a user types them, from text to prediction, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tasks
import train
from data.pipeline import eval_batches
from training.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_from_text_to_fillers_as_a_user_types_it(smoke, tmp_path, command):
    run = tmp_path / "run"
    trained = command(*smoke)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[0] == f"workdir: {run}"
    assert "step     20/20 loss" in trained.stdout and "MFU" in trained.stdout and "left" in trained.stdout
    assert {"config.json", "run.json", "metrics.jsonl", "tensorboard", "tokenizer", "checkpoints"} <= set(
        os.listdir(run)
    )
    records = metrics(run)
    assert [(r["step"], r["split"]) for r in records] == [(10, "train"), (10, "valid"), (20, "train"), (20, "valid")]
    assert {"loss", "accuracy", "perplexity", "learning_rate", "tokens_per_second", "mfu"} <= set(records[0])
    about = json.loads((run / "run.json").read_text())
    assert about["parameters"] > 0 and about["versions"]["jax"] and about["fingerprints"]["train"]

    for _ in range(2):
        evaluated = command("eval.py", f"--workdir={run}")
        assert evaluated.returncode == 0, evaluated.stderr
        result = json.loads((run / "eval" / "valid.json").read_text())
        assert result["step"] == 20 and result["split"] == "valid"
        previous = locals().get("previous", result)
        assert result == previous, "two evaluations agree to the digit"

    lines = "the old [MASK] sees the [MASK] .\n\nthe silent king\n"
    filled = command("predict.py", f"--workdir={run}", "--top_k=2", input=lines)
    assert filled.returncode == 0, filled.stderr
    results = [json.loads(line) for line in filled.stdout.splitlines()]
    assert [len(result["masks"]) for result in results] == [2, 0]
    assert all(len(mask) == 2 for mask in results[0]["masks"])
    (tmp_path / "lines.txt").write_text(lines)
    to_file = command(
        "predict.py", f"--workdir={run}", f"--input={tmp_path / 'lines.txt'}", f"--output={tmp_path / 'out'}"
    )
    assert to_file.returncode == 0 and len((tmp_path / "out").read_text().splitlines()) == 2

    again = command(*smoke)
    assert again.returncode == 0 and "nothing left to do" in again.stdout


def test_histograms_are_written_when_due_of_all_parameters_and_of_the_gradients_of_what_is_trained(smoke, monkeypatch):
    written = {}
    monkeypatch.setattr(train.Logbook, "histograms", lambda self, step, tag, tree: written.update({(step, tag): tree}))
    words = ["--config.train.histogram_every=8", "--config.train.steps=17", "--config.train.eval_every=0"]
    words += ["--config.optimizer.rules=(('embeddings/.*','freeze'),('.*',1.0))"]
    assert train.main([*smoke, *words]) == 0
    assert written.keys() == {(step, tag) for step in (8, 16) for tag in ("parameters", "gradients")}
    parameters, gradients = written[8, "parameters"], written[8, "gradients"]
    assert "embeddings" in parameters and "embeddings" not in gradients and "encoder" in gradients
    assert int(parameters["embeddings"]["word"]["embedding"]["counts"].sum()) == 128 * 32


def test_a_mistake_leaves_with_status_2_and_no_traceback(smoke, tmp_path, command):
    done = command(*smoke, "--config.model.num_heads=5")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert len(done.stderr.strip().splitlines()) <= 3 and "Traceback" not in done.stderr


@pytest.mark.parametrize("evaluated", ["valid", "data"])
def test_eval_takes_other_data_and_another_checkpoint(smoke, tmp_path, corpus, evaluated):
    import eval as eval_command

    assert train.main([*smoke, "--config.train.keep=2", "--config.train.eval_every=0"]) == 0
    run = tmp_path / "run"
    if evaluated == "data":
        assert eval_command.main(["eval.py", f"--workdir={run}", f"--data=text:{corpus}"]) == 0
        (result,) = (json.loads(path.read_text()) for path in (run / "eval").glob("data-*.json"))
        assert result["source"] == f"text:{corpus}"
    else:
        assert eval_command.main(["eval.py", f"--workdir={run}", "--checkpoint=10"]) == 0
        assert json.loads((run / "eval" / "valid.json").read_text())["step"] == 10


def state_of(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, the optimizer's too."""
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").absolute())
    import jax

    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


LONG = [
    "--config.train.steps=200",
    "--config.train.checkpoint_every=50",
    "--config.train.log_every=50",
    "--config.train.eval_every=0",
    "--config.train.keep=9",
    "--config.model.hidden_size=96",
    "--config.train.batch_size=32",
]


@pytest.mark.slow  # tests/test_resume.py looks at the same without a kill, `python -m benchmarks.faults` with many
def test_200_steps_are_100_steps_a_kill_and_100_more_to_the_bit(smoke, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train.main([*smoke, *LONG, f"--workdir={whole}"]) == 0
    process = subprocess.Popen(
        [sys.executable, *smoke, *LONG, f"--workdir={killed}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.time() + 120
    while 100 not in Checkpoints(killed / "checkpoints").steps() and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = Checkpoints(killed / "checkpoints").steps()
    assert 100 in left and 200 not in left, "killed in the middle"
    assert train.main([*smoke, *LONG, f"--workdir={killed}"]) == 0
    expected, found = state_of(whole, 200), state_of(killed, 200)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, found[name], err_msg=name)
    losses = [[(r["step"], r["loss"]) for r in metrics(folder) if r["split"] == "train"] for folder in (whole, killed)]
    assert losses[0] == losses[1]


def test_a_signal_saves_and_leaves_with_its_status(smoke, tmp_path):
    run = tmp_path / "run"
    words = [*smoke, *LONG, "--config.train.steps=100000", "--config.train.checkpoint_every=0"]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if line.startswith("step"):
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    (step,) = Checkpoints(run / "checkpoints").steps()
    assert f"at step {step}, saved" in output
    assert metrics(run)[-1]["step"] == step


def test_a_run_that_diverges_stops_with_status_3_and_names_step_and_records(smoke, tmp_path, capsys):
    words = [
        *smoke,
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip_norm=0",
    ]
    assert train.main(words) == 3
    printed = capsys.readouterr()
    assert "diverged" in printed.err and "of step " in printed.err and "records: [" in printed.err
    assert 20 not in Checkpoints(tmp_path / "run" / "checkpoints").steps()


@pytest.mark.parametrize("tokenizer", ["unigram:512", "bpe:512"])
def test_sentencepiece_goes_the_whole_way(smoke, tmp_path, tokenizer, capsys):
    assert train.main([*smoke, f"--config.data.tokenizer={tokenizer}"]) == 0
    task, model = tasks.restore(tmp_path / "run")
    result = next(task.predict(model, iter(["the old [MASK] ."]), task.Options(top_k=4)))
    assert len(result["masks"]) == 1 and len(result["masks"][0]) == 4


@pytest.mark.parametrize(
    "name",
    ["adamw", "sgd", "adafactor"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("rmsprop", "adam", "lion", "lamb")],
)
def test_every_optimizer_trains_by_name(smoke, tmp_path, name):
    words = [
        *smoke,
        f"--config.optimizer.name={name}",
        "--config.train.eval_every=0",
        "--config.train.histogram_every=0",
    ]
    assert train.main([*words, "--config.optimizer.learning_rate=1e-3"]) == 0


def test_a_run_learns_more_than_which_words_are_common(smoke, tmp_path):
    words = [
        *smoke,
        "--config.data.tokenizer=wordpiece:256",
        "--config.train.steps=300",
        "--config.train.batch_size=32",
        "--config.train.eval_every=0",
        "--config.model.hidden_size=64",
        "--config.optimizer.learning_rate=5e-3",
    ]
    assert train.main(words) == 0
    task, _ = tasks.restore(tmp_path / "run")
    hidden = np.concatenate(
        [batch["predict_ids"][batch["predict_weights"] > 0] for batch in eval_batches(task.rows("valid"), 8)]
    )
    shares = np.bincount(hidden) / len(hidden)
    without_context = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert metrics(tmp_path / "run")[-1]["split"] == "valid"
    assert metrics(tmp_path / "run")[-1]["loss"] < without_context - 0.7
