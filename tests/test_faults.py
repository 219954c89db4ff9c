"""What a run survives as a user starts it: a second start beside it, damage, signals at any time, a full disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import convert
import train
from cli import workdir
from errors import UserError
from training.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent


def start(smoke, *words) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *smoke, *words], cwd=ROOT, **pipes)


def damage(checkpoint: Path) -> None:
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def test_a_second_process_in_the_same_folder_is_refused_and_told_who_is_there(tmp_path):
    with workdir.Lock(tmp_path) as first, workdir.Lock(tmp_path) as second:
        first.acquire()
        with pytest.raises(UserError, match=f"process {os.getpid()} on ") as error:
            second.acquire()
        assert len(str(error.value).splitlines()) <= 3
    with workdir.Lock(tmp_path) as third:
        third.acquire()


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from cli import workdir; lock = workdir.Lock(Path(sys.argv[1]))"
    )
    program += "; lock.acquire(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with workdir.Lock(tmp_path) as lock:
        with pytest.raises(UserError, match=f"process {holder.pid} on "):
            lock.acquire()
        holder.kill()
        holder.wait()
        lock.acquire()


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_check_tells_of_it(smoke, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(smoke) == 0
    before = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert convert.main(["convert.py", "check", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["step 10: whole", "step 20: whole"]
    damage(run / "checkpoints" / "20")
    with pytest.raises(UserError, match="has a damaged checkpoint"):
        convert.main(["convert.py", "check", f"--workdir={run}"])
    assert "step 20: damaged: " in capsys.readouterr().out
    assert train.main(smoke) == 0
    printed = capsys.readouterr().out
    assert "checkpoint of step 20 is damaged" in printed and "goes on at step 10" in printed
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == before["loss"]


def test_a_run_without_any_whole_checkpoint_does_not_begin_at_zero(smoke, tmp_path):
    assert train.main([*smoke, "--config.train.keep=1"]) == 0
    damage(tmp_path / "run" / "checkpoints" / "20")
    with pytest.raises(UserError, match="holds no checkpoint that is whole"):
        train.main(smoke)


def test_verify_checkpoints_says_which_are_whole_and_trains_nothing(smoke, tmp_path, capsys):
    with pytest.raises(UserError, match="has no checkpoint"):
        train.main([*smoke, "--verify_checkpoints"])
    assert not (tmp_path / "run").exists()
    assert train.main(smoke) == 0
    assert train.main([*smoke, "--verify_checkpoints"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["step 10: whole", "step 20: whole"]
    damage(tmp_path / "run" / "checkpoints" / "10")
    (tmp_path / "run" / "checkpoints" / "900").mkdir()
    with pytest.raises(UserError, match="has a damaged checkpoint"):
        train.main([*smoke, "--verify_checkpoints", "--config.train.steps=40"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("step 10: damaged: ") and lines[-2:] == [
        "step 20: whole",
        "no checkpoint: 900 is empty",
    ]


def test_empty_and_foreign_folders_among_the_checkpoints_are_passed_over_and_told(smoke, tmp_path, capsys):
    assert train.main(smoke) == 0
    (tmp_path / "run" / "checkpoints" / "900").mkdir()
    (tmp_path / "run" / "checkpoints" / "notes").mkdir()
    assert train.main([*smoke, "--config.train.steps=21"]) == 0
    printed = capsys.readouterr().out
    assert "among the checkpoints 900 is empty: passed over" in printed
    assert "among the checkpoints notes is none: passed over" in printed and "goes on at step 20" in printed


@pytest.mark.parametrize("changed", ["train", "valid", "tokenizer"])
def test_a_run_does_not_go_on_with_other_contents_of_what_it_was_started_with(smoke, corpus, tmp_path, changed):
    texts = corpus.read_text().split("\n\n")
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "valid")}
    files["train"].write_text("\n\n".join(texts[:300]))
    files["valid"].write_text("\n\n".join(texts[300:]))
    vocabulary = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in texts for word in text.split()})]
    vocabulary.write_text("\n".join(pieces) + "\n")
    words = [*smoke, *(f"--config.data.{name}=text:{path}" for name, path in files.items())]
    words += [f"--config.data.tokenizer={vocabulary}", "--config.train.steps=5"]
    assert train.main(words) == 0
    if changed == "tokenizer":
        vocabulary.write_text("\n".join([*pieces[:-2], pieces[-1], pieces[-2]]) + "\n")
    else:
        files[changed].write_text(files[changed].read_text() + "\n\none more")
    told = "another experiment: data.vocabulary_hash" if changed == "tokenizer" else f"other contents of {changed}"
    with pytest.raises(UserError, match=told):
        train.main([*words, "--config.train.steps=6"])


def test_a_second_signal_while_the_first_is_obeyed_changes_nothing(smoke, tmp_path):
    process = start(smoke, "--config.train.steps=1000000", "--config.train.eval_every=0")
    while not process.stdout.readline().startswith("step"):
        pass
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert f"at step {checkpoints.newest_whole(print)}, saved" in told


def test_a_signal_before_the_first_step_ends_the_run_at_once(smoke, tmp_path):
    process = start(smoke)
    assert process.stdout.readline().startswith("workdir:")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.strip() == "stopped by signal 2 before the first step: nothing to save"
    assert train.main(smoke) == 0, "the same command begins again"


def test_a_signal_in_an_evaluation_breaks_it_off_and_the_next_start_makes_up_for_it(smoke, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*smoke, f"--workdir={whole}"]) == 0
    batches = train.eval_batches

    def signalled(*arguments, **settings):
        for number, batch in enumerate(batches(*arguments, **settings)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(train, "eval_batches", signalled)
    assert train.main([*smoke, f"--workdir={broken}"]) == 143
    records = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in records] == [(10, "train")]
    monkeypatch.setattr(train, "eval_batches", batches)
    assert train.main([*smoke, f"--workdir={broken}"]) == 0
    losses = [
        [(r["step"], r["split"], r["loss"]) for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1]


def test_a_full_disk_is_told_at_the_next_step_and_nothing_is_lost(smoke, tmp_path):
    assert train.main(smoke) == 0
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))"
    limited += "; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = start(["-c", limited, *smoke], "--config.train.steps=40")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2, told
    # The libraries' own threads complain before and behind it.
    assert "a checkpoint cannot be written" in told and "goes on from step 20, which is whole" in told
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest_whole(print) == 20


def test_handlers_of_signals_are_as_before_when_a_run_has_ended(smoke, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert train.main(smoke) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
