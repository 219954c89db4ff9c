"""`train.py --dry_run`: what a run would do, from shapes alone."""

import os
import re

import pytest

import train
from errors import UserError


def test_a_dry_run_tells_parameters_memory_operations_and_examples_and_writes_nothing(smoke, tmp_path, capsys):
    words = ["--config.optimizer.rules=(('embeddings/.*','freeze'),('mlm_head/.*',0.5),('.*',1.0))"]
    assert train.main([*smoke, *words, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert lines["embeddings/word/embedding"].split()[1:] == ["[128,", "32]", "float32", "whole", "frozen", "no"]
    assert lines["mlm_head/transform/kernel"].split()[-3:] == ["×", "0.5", "yes"]
    assert lines["encoder/layers/0/mlp/up/bias"].split()[-3:] == ["×", "1", "no"]
    assert re.search(r"[\d,]+ parameters, [\d,]+ of them trained", printed)
    assert "communication: none" in printed and "devices: 1 × cpu" in printed
    memory = re.search(r"params ([\d.]+) KiB · opt_state ([\d.]+) KiB", printed)
    assert float(memory[2]) < 2 * float(memory[1]), "what is frozen has no moments"
    places, tokens = map(int, re.search(r"8 rows · (\d+) places, (\d+) tokens", printed).groups())
    assert places == 8 * 32 and 0.9 * places < tokens <= places
    assert re.search(r"example 2: \[CLS\] .*\[SEP\]", printed)


def test_a_dry_run_of_a_run_that_is_there_changes_nothing_in_it(smoke, tmp_path):
    assert train.main(smoke) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert train.main([*smoke, "--config.train.steps=40", "--dry_run"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}


def test_on_several_devices_it_tells_splits_communication_and_what_an_axis_does_not_divide(smoke, command, simulated):
    words = ["--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.model.hidden_size=40", "--dry_run"]
    done = command(*smoke, *words, env=os.environ | simulated(8))
    assert done.returncode == 0, done.stderr
    assert "8 × cpu · processes: 1 · mesh: data 1 × fsdp 8 × tensor 1" in done.stdout
    assert re.search(r"embeddings/word/embedding +\[128, 40\] +float32 +fsdp, -", done.stdout)
    assert re.search(r"communication: \d+ × all-gather", done.stdout)
    odd = [*words[:2], "--config.model.hidden_size=36", "--config.model.num_heads=2", "--dry_run"]
    done = command(*smoke, *odd, env=os.environ | simulated(8))
    assert re.search(r"whole along fsdp, whose 8 divides none of their dimensions: .*\[36", done.stdout)


@pytest.mark.parametrize("asked", ["5", "5:5", "7:3", "a:b", "-1:4", "3:", ":"])
def test_steps_to_trace_that_are_none_are_refused(smoke, tmp_path, asked):
    with pytest.raises(UserError, match="--profile"):
        train.main([*smoke, f"--profile={asked}"])
    assert not (tmp_path / "run").exists()


def test_a_trace_of_some_steps_lies_in_the_runs_folder(smoke, tmp_path, capsys):
    assert train.main([*smoke, "--profile=3:5"]) == 0
    assert "traced up to step 5" in capsys.readouterr().out
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
