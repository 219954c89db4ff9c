import json

import jax
import numpy as np
import pytest
import sacrebleu
from flax import nnx

import eval as evaluation
import train
from cli import config as configs
from data.pipeline import eval_batches
from errors import UserError
from models import parameters
from tasks.seq2seq import Seq2Seq, TranslateOptions
from training.step import evaluate, make_eval_step

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A tsv file of 300 counts, in English and in German."""
    draw = np.random.default_rng(0)
    rows = [draw.choice(list(WORDS), draw.integers(1, 6)) for _ in range(300)]
    lines = [f"{' '.join(row)}\t{' '.join(WORDS[word] for word in row)}" for row in rows]
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("en\tde\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def make(pairs, *words) -> Seq2Seq:
    words = ["train.py", "--config=configs/transformer_mt.py:smoke", f"--config.data.train=tsv:{pairs}", *words]
    words += ["--config.data.source=en", "--config.data.target=de"]
    return Seq2Seq.create(configs.from_command_line(words, "")[0], lambda line: None)


@pytest.fixture(scope="module")
def task(pairs):
    return make(pairs)


@pytest.fixture(scope="module")
def model(task):
    return task.build(nnx.Rngs(0))


@pytest.mark.parametrize("variant", ["tiny", "mini", "base"])
def test_every_variant_takes_a_step_that_keeps_shapes_and_float32_parameters(pairs, variant, check_step):
    """By shapes alone, nothing is computed; base computes in bfloat16."""
    words = ["train.py", f"--config=configs/transformer_mt.py:{variant}", f"--config.data.train=tsv:{pairs}"]
    words += ["--config.data.source=en", "--config.data.target=de", "--config.data.tokenizer=unigram:512"]
    config, *_ = configs.from_command_line([*words], "")
    task = Seq2Seq.create(config, lambda line: None)
    check_step(task)


def measured(task, model, batch_size):
    graphdef, params, model_state = parameters.split(model)
    step = jax.jit(make_eval_step(parameters.functional(graphdef, task.evaluate)))
    return evaluate(step, {"params": params, "model_state": model_state}, eval_batches(task.rows("valid"), batch_size))


def test_every_token_of_the_held_out_targets_counts_once_whatever_the_batch(task, model):
    one, other = (measured(task, model, size)[0] for size in (8, 3))
    sides = task._open_sides("valid")
    encoded = task.tokenizer.encode_batch([sides[1][i]["text"] for i in range(len(sides[1]))])
    assert one["weight"] == other["weight"] == one["tokens"] == sum(map(len, encoded)) + len(encoded)
    assert one["examples"] == len(encoded) and other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert set(task.metrics(one)) == set(task.metric_names())


def test_rows_that_were_packed_otherwise_have_another_fingerprint(task, monkeypatch):
    """So that a run never goes on with other rows than it began with."""
    before = task.rows("train").fingerprint
    assert task.rows("train").fingerprint == before
    monkeypatch.setattr("tasks.seq2seq.OPEN", 8)
    assert task.rows("train").fingerprint != before


def test_no_source_is_on_both_sides_and_sides_stay_together(task):
    texts = {
        split: [side[i]["text"] for side in task._open_sides(split) for i in range(len(side))]
        for split in ("train", "valid")
    }
    for split in texts:
        half = len(texts[split]) // 2
        for source, target in zip(texts[split][:half], texts[split][half:], strict=True):
            assert " ".join(WORDS[word] for word in source.split()) == target
    half = {split: set(found[: len(found) // 2]) for split, found in texts.items()}
    assert not half["train"] & half["valid"] and half["valid"]


def test_a_trained_run_translates_and_measures_as_sacrebleu_does(pairs, tmp_path, command, capsys):
    """With a tokenizer for each side."""
    run = tmp_path / "run"
    words = ["train.py", "--config=configs/transformer_mt.py:smoke", f"--workdir={run}"]
    words += [f"--config.data.train=tsv:{pairs}", "--config.data.source=en", "--config.data.target=de"]
    words += ["--config.data.target_tokenizer=unigram:512", "--config.model.hidden_size=64"]
    words += ["--config.train.steps=350", "--config.optimizer.learning_rate=3e-3", "--config.train.batch_size=16"]
    words += ["--config.train.eval_every=0", "--config.train.checkpoint_every=0"]
    assert train.main(words) == 0
    assert evaluation.main(["eval.py", f"--workdir={run}"]) == 0
    result = json.loads((run / "eval" / "valid.json").read_text())
    shown = result["translations"]
    assert 0 < len(shown) <= 20 and f"reference    {shown[0]['reference']}" in capsys.readouterr().out
    assert result["bleu"] > 30 and result["chrf"] > 30 and 0 < result["exact_match"] <= 1
    assert result["bleu_signature"].startswith("nrefs:1") and "tok:13a" in result["bleu_signature"]
    assert (run / "eval" / "valid.attention_cross.png").is_file()

    shown = shown[:7]  # three batches, the last not full
    sources = "\n".join(pair["source"] for pair in shown)
    flags = ("--beams=2", "--length_penalty=0", "--batch_size=3", f"--attention={tmp_path / 'pictures'}")
    said = command("predict.py", f"--workdir={run}", *flags, input=sources)
    assert said.returncode == 0, said.stderr
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == [pair["source"] for pair in shown]
    assert {"translation", "score", "tokens"} <= set(answers[0])
    by_two = [answer["translation"] for answer in answers]
    assert sacrebleu.corpus_bleu(by_two, [[pair["reference"] for pair in shown]]).score > 30
    assert len(list((tmp_path / "pictures").glob("*.cross.png"))) == len(shown)


def test_lines_that_are_too_long_are_cut_and_the_answer_says_so(task, model):
    found = list(task.predict(model, iter(["one", "two " * 60]), TranslateOptions(max_tokens=4)))
    assert "cut_tokens" not in found[0] and found[1]["cut_tokens"] > 20


def test_a_script_that_the_tokenizer_has_never_seen_is_spelled_in_bytes(task, model):
    assert task.tokenizer.unk_id not in task.tokenizer.encode_batch(["Ω Ж 漢字 🦊"])[0]
    found = list(task.predict(model, iter(["Ω Ж 漢字 🦊"]), TranslateOptions(max_tokens=4)))
    assert len(found) == 1


@pytest.mark.parametrize(
    "options, field",
    [
        ({"beams": 0}, "--beams"),
        ({"beams": 10**6}, "--beams"),
        ({"beams": 2, "temperature": 1.0}, "--temperature"),
        ({"temperature": -0.5}, "--temperature"),
        ({"length_penalty": -1.0}, "--length_penalty"),
        ({"max_tokens": 10**6}, "--max_tokens"),
        ({"batch_size": 0}, "--batch_size"),
    ],
)
def test_options_that_cannot_be_met_are_refused(task, model, options, field):
    with pytest.raises(UserError) as error:
        list(task.predict(model, iter(["one"]), TranslateOptions(**options)))
    assert error.value.field == field


@pytest.mark.parametrize(
    "words, message",
    [
        (("--config.data.target=en",), "config.data.target"),
        (("--config.data.label_smoothing=1.0",), "config.data.label_smoothing"),
        (("--config.data.eval_beams=0",), "config.data.eval_beams"),
    ],
)
def test_values_that_make_no_sense_are_refused(pairs, words, message):
    words = ["train.py", "--config=configs/transformer_mt.py:smoke", f"--config.data.train=tsv:{pairs}", *words]
    words += [
        word
        for word in ("--config.data.source=en", "--config.data.target=de")
        if word.split("=")[0] not in "".join(words)
    ]
    with pytest.raises(UserError, match=message):
        Seq2Seq.create(configs.from_command_line(words, "")[0], lambda line: None)
