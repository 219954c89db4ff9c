"""The benchmarks run and print JSON and a table; how fast they are is not tested. Minutes, so only with `-m slow`."""

import json

import pytest

SMALL = ["--vocab=512", "--rows=4", "--seq_len=32", "--steps=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["benchmarks.pretrain_step", "--sizes=1x32,2x32", *SMALL],
        ["benchmarks.pretrain_step", "--experiment=gpt_lm", "--sizes=1x32", *SMALL],
        ["benchmarks.classify_step", *SMALL[1:], "--frozen=1", "--init_from={pretrained}", "--train=csv:{labelled}"],
        ["benchmarks.overhead", "--variant=smoke", "--blocks=10", "--steps=3"],
        ["benchmarks.mlm_quality", "--variant=smoke", "--seconds=2", "--train=text:{corpus}", "--valid=text:{corpus}"],
        ["benchmarks.decode", "--layers=1", "--width=32", "--vocab=512", "--batch=2", "--new_tokens=4", "--beams=2"],
        ["benchmarks.start", "--config=configs/bert_mlm.py:smoke", "--repeats=1"],
    ],
    ids=lambda words: words[0],
)
def test_a_benchmark_prints_one_json_object_a_line_and_one_table(command, corpus, labelled, pretrained, words):
    files = {"corpus": corpus, "labelled": labelled, "pretrained": pretrained}
    done = command("-m", *(word.format(**files) for word in words))
    assert done.returncode == 0, done.stderr
    objects, table = done.stdout.strip().split("\n\n")
    results = [json.loads(line) for line in objects.splitlines()]
    assert results and all(result["benchmark"] == words[0].split(".")[1] for result in results)
    assert {line.count("|") for line in table.splitlines()} == {len(results) + 2}
    assert len(table.splitlines()) == len(results[0]) + 1


def test_curves_are_drawn_from_the_records_of_runs(command, tmp_path):
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        records = [{"step": s, "split": split, "loss": 5 - s / 10} for s in (1, 2) for split in ("train", "valid")]
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    picture = tmp_path / "curves.png"
    done = command("-m", "benchmarks.curves", f"--runs={tmp_path / 'one'},{tmp_path / 'two'}", f"--output={picture}")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    missing = command("-m", "benchmarks.curves", f"--runs={tmp_path / 'three'}")
    assert missing.returncode == 2 and "three" in missing.stderr
