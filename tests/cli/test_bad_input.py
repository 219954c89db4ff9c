"""Each mistake a user can make: status 2, at most three lines that name it and its mend, and nothing written."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

import convert
import predict
import train
from cli import commandline


def refused(main, words, capsys, said, workdir: Path | None = None):
    """Runs a command that must be refused; returns what it printed on standard error."""
    before = snapshot(workdir) if workdir else None
    with pytest.raises(SystemExit) as stop:
        commandline.run(lambda argv: main(words))
    printed = capsys.readouterr().err
    assert stop.value.code == 2, printed
    assert 1 <= len(printed.splitlines()) <= 3, printed
    for part in said:
        assert part in printed, printed
    if workdir:
        assert snapshot(workdir) == before, "nothing may be written"
    return printed


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.train.stepz=10", ("--config.train.stepz", "--config.train.steps")),
        ("--config.optimiser.name=sgd", ("--config.optimiser.name", "--config.optimizer.name")),
        ("--config.model.num_head=2", ("--config.model.num_heads",)),
        ("--workdri=x", ("--workdir",)),
        ("--config.train.steps=many", ("config.train.steps", "'many'", "whole number")),
        ("--config.train.steps=1.5", ("config.train.steps", "whole number")),
        ("--config.train.steps=-5", ("config.train.steps", "-5")),
        ("--config.train.steps=True", ("config.train.steps", "whole number")),
        ("--config.train.batch_size=0", ("config.train.batch_size", "0")),
        ("--config.optimizer.learning_rate=nan", ("config.optimizer.learning_rate",)),
        ("--config.optimizer.learning_rate=-1e-3", ("config.optimizer.learning_rate", "-0.001")),
        ("--config.model.name=vit", ("config.model.name", "vit has no head for config.task=mlm")),
        ("--config.optimizer.name=adamx", ("config.optimizer.name", "adamw")),
        ("--config.optimizer.schedule=cosin", ("config.optimizer.schedule", "cosine")),
        ("--config.optimizer.decay_rules=x", ("config.optimizer.decay_rules", "'x'")),
        ("--config.optimizer.decay_rules=('.*',0.1)", ("config.optimizer.decay_rules", "'.*'")),
        ("--config.optimizer.decay_rules=(('nothing',0),('.*',1))", ("config.optimizer.decay_rules", "nothing")),
        ("--config.optimizer.warmup_steps=21", ("config.optimizer.warmup_steps", "21 of 20")),
        ("--config.data.whole_word=perhaps", ("config.data.whole_word", "true or false")),
        ("--config.data.mask_rate=1.5", ("config.data.mask_rate", "1.5")),
        ("--config.data.tokenizer=wordpeice:100", ("config.data.tokenizer", "wordpiece:100")),
        ("--config.data.tokenizer=wordpiece:-3", ("config.data.tokenizer", "wordpiece:-3")),
        ("--config.data.tokenizer=/no/such/tokenizer.json", ("config.data.tokenizer", "/no/such/tokenizer.json")),
        ("--config.data.train=texts:a.txt", ("config.data.train", "text:a.txt")),
        ("--config.data.train=/no/such/file.txt", ("config.data.train", "text:/no/such/file.txt")),
        ("--config.data.train=text:/no/such/file.txt", ("config.data.train", "/no/such/file.txt")),
        ("--config.data.train=text:/no/such/*.txt", ("config.data.train", "/no/such/*.txt")),
        ("--config.data.train=tfds:no_such_set", ("config.data.train", "no_such_set")),
        ("--config.data.document=page", ("config.data.document", "paragraph")),
        ("--config.model.name=bart", ("config.model.name", "bert")),
        ("--config.model.num_heads=3", ("config.model.num_heads", "3 heads", "32")),
        ("--config.model.norm=middle", ("config.model.norm", "post, pre")),
        ("--config.model.dropout=1", ("config.model.dropout", "1")),
        ("--config.model.vocab_size=20", ("config.model.vocab_size", "20", "128")),
        ("--config.model.max_positions=16", ("config.model.max_positions", "32")),
        ("--config.model.hidden_size=-32", ("config.model.hidden_size", "-32")),
        ("--config.train.accumulate=3", ("config.train.accumulate", "8")),
        ("--config.train.epochs=2", ("config.train.steps", "config.train.epochs")),
        ("--config.mesh.data=5", ("config.mesh.data", "5", "1")),
        ("--config.seed=-1", ("config.seed", "-1")),
        ("--config.dtype=float16", ("config.dtype", "bfloat16")),
        ("--config.task=mlmm", ("config.task", "mlm")),
        ("--config.train.steps", ("--config.train.steps", "missing")),
    ],
)
def test_a_wrong_value_is_refused(smoke, tmp_path, capsys, flag, said):
    refused(train.main, [*smoke, flag], capsys, said)
    assert not (tmp_path / "run").exists()


def test_stray_words_are_refused(smoke, tmp_path, capsys):
    refused(train.main, [*smoke, "--config.data.whole_word", "false", "quickly"], capsys, ("stray", "quickly"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ("--config", "configs/bert_mlm.py")),
        (["--config=configs/bert_mml.py"], ("configs/bert_mml.py", "configs/bert_mlm.py")),
        (["--config=configs/bert_mlm.py:huge"], ("'huge'", "tiny")),
    ],
)
def test_a_config_that_is_not_there_is_refused_with_the_nearest(capsys, words, said):
    refused(train.main, ["train.py", *words], capsys, said)


def test_a_broken_config_file_is_named(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def get_config():\n    return undefined\n")
    refused(train.main, ["train.py", f"--config={tmp_path / 'mine.py'}"], capsys, ("mine.py", "undefined"))


CSV = "sentence,label\na fine film of old days,1\na dull film,0\n"


@pytest.mark.parametrize(
    ("name", "content", "spec", "said"),
    [
        ("empty.txt", b"", "text:{}", ("empty.txt", "is empty")),
        ("blank.txt", b"\n \n\n", "text:{}", ("blank.txt", "is empty")),
        ("latin.txt", "one\n\ntwo\n\ncaf\xe9\n".encode("latin-1"), "text:{}", ("latin.txt:5", "UTF-8")),
        ("cut.txt.gz", gzip.compress(os.urandom(9000).hex().encode())[:500], "text:{}", ("cut.txt.gz", "unpacked")),
        ("films.csv", CSV.encode(), "csv:{}", ("config.data.text", "'text'", "sentence, label")),
        ("films.tsv", CSV.replace(",", "\t").encode(), "tsv:{}", ("config.data.text", "sentence, label")),
        ("films.jsonl", b'{"sentence": "a film"}\n', "jsonl:{}", ("config.data.text", "sentence")),
        ("bad.jsonl", b'{"text": "a film"}\n{"text": \n', "jsonl:{}", ("bad.jsonl:2",)),
        ("short.csv", b"text,label\na film,1\nanother\nthird,0\n", "csv:{}", ("short.csv:3", "1 field")),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(smoke, tmp_path, capsys, name, content, spec, said):
    path = tmp_path / name
    path.write_bytes(content)
    refused(train.main, [*smoke, f"--config.data.train={spec.format(path)}"], capsys, said)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_place_of_a_file_is_refused(smoke, tmp_path, capsys):
    refused(train.main, [*smoke, f"--config.data.train=text:{tmp_path}"], capsys, ("config.data.train", "folder"))


def test_a_workdir_that_cannot_be_written_is_refused(smoke, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    words = [*smoke, f"--workdir={tmp_path / 'file' / 'run'}"]
    refused(train.main, words, capsys, ("--workdir", "cannot be written"), tmp_path)


def test_a_workdir_that_holds_something_else_is_refused(smoke, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(train.main, smoke, capsys, ("run", "holds no run"), tmp_path / "run")


def test_a_workdir_of_another_experiment_is_refused_with_the_differences(smoke, tmp_path, capsys):
    assert train.main(smoke) == 0
    words = [*smoke, "--config.model.num_layers=2", "--config.seed=3"]
    refused(train.main, words, capsys, ("model.num_layers 1 -> 2", "seed 0 -> 3"), tmp_path / "run")
    # And what a run's other commands refuse, while there is a run.
    workdir = f"--workdir={tmp_path / 'run'}"
    refused(predict.main, ["predict.py", workdir, "--top_q=3"], capsys, ("--top_q", "--top_k"))
    refused(predict.main, ["predict.py", workdir, "--top_k=0"], capsys, ("--top_k", "0"))
    refused(predict.main, ["predict.py", workdir, "--checkpoint=7"], capsys, ("--checkpoint", "'7'", "20"))
    refused(predict.main, ["predict.py", workdir, "--input=/no/such/file"], capsys, ("--input", "/no/such/file"))
    tokenizer = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    larger = tokenizer.read_text().replace('"##', '"@@')
    tokenizer.write_text(larger)
    refused(predict.main, ["predict.py", workdir], capsys, ("tokenizer",))


@pytest.mark.parametrize("words", [[], ["--workdir=/no/such/run"]])
def test_a_run_that_is_not_there_is_refused(capsys, words):
    refused(predict.main, ["predict.py", *words], capsys, ("--workdir",))


# ---- fine-tuning


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.optimizer.rules=(('decoder/.*','freeze'),('.*',1.0))", ("config.optimizer.rules", "decoder/.*")),
        ("--config.optimizer.rules=(('encoder/.*','freeze'),)", ("config.optimizer.rules", "no rule covers")),
        ("--config.optimizer.rules=(('.*','freeze'),)", ("config.optimizer.rules", "every parameter is frozen")),
        ("--config.optimizer.rules=(('.*','slow'),)", ("config.optimizer.rules", "'slow'", "'freeze'")),
        ("--config.optimizer.rules=freeze", ("config.optimizer.rules", "'freeze'")),
        ("--config.optimizer.phases=((5,(('.*',1.0),)),)", ("config.optimizer.phases", "[5]", "step 0")),
        ("--config.optimizer.phases=((0,'.*'),)", ("config.optimizer.phases",)),
        ("--config.optimizer.layer_decay=0", ("config.optimizer.layer_decay",)),
        ("--config.optimizer.l1=-1", ("config.optimizer.l1", "-1")),
        ("--config.lora.kernels=nothing", ()),
        ("--config.lora.rank=-2", ("config.lora.rank", "-2")),
        ("--config.train.best_metric=acuracy", ("config.train.best_metric", "'acuracy'", "accuracy")),
        ("--config.train.best_metric=", ()),
        ("--config.train.patience=-1", ("config.train.patience",)),
        ("--config.data.label=topic", ("config.data.label", "'topic'", "label")),
        ("--config.data.labels=('builder','watcher','sleeper')", ("config.data.labels", "'sleeper'", "empty class")),
        ("--config.data.labels=('builder',)", ("config.data.labels", "'watcher'")),
        ("--config.model.num_labels=1", ("config.model.num_labels", "out of range")),
        ("--config.data.class_weights=sleeper:2", ("config.data.class_weights", "sleeper", "watcher")),
        ("--config.data.problem=regression", ("labelled.csv:2", "'label'")),
        ("--config.model.hidden_size=64", ("config.model.hidden_size", "64", "32")),
        ("--config.data.tokenizer=wordpiece:512", ("config.data.tokenizer",)),
        ("--config.data.seq_len=64", ("config.model.max_positions", "64")),
        ("--config.init_from=/no/such/folder", ("config.init_from", "/no/such/folder")),
        ("--config.task=features", ("config.task",)),
    ],
)
def test_a_wrong_value_of_fine_tuning_is_refused(finetune, tmp_path, capsys, flag, said):
    if not said:  # without adapters their pattern means nothing, and an empty metric is none
        return
    refused(train.main, [*finetune, flag], capsys, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ("a fine film,good\na dull film,bad\n", [], ("valid.csv:2", "'good'")),
        ("a fine film,watcher,9\n", [], ("valid.csv:2", "3 fields")),
        ("a fine film,watcher\na film,\n", [], ("valid.csv:3", "empty")),
    ],
)
def test_a_record_that_does_not_fit_is_named_with_its_line(finetune, tmp_path, capsys, rows, words, said):
    (tmp_path / "valid.csv").write_text("text,label\n" + rows)
    refused(train.main, [*finetune, f"--config.data.valid=csv:{tmp_path / 'valid.csv'}", *words], capsys, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", ["nan", "inf", "cheap", ""])
def test_a_target_that_is_no_number_is_named_with_its_line(finetune, tmp_path, capsys, number):
    (tmp_path / "prices.csv").write_text(f"text,label\na house,3\na hut,{number}\n")
    words = [f"--config.data.train=csv:{tmp_path / 'prices.csv'}", "--config.data.problem=regression"]
    refused(train.main, [*finetune, *words], capsys, ("prices.csv:3",))
    assert not (tmp_path / "run").exists()


def test_an_origin_that_is_not_whole_is_refused(finetune, pretrained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(pretrained, copy)
    words = [*finetune, f"--config.init_from={copy}"]
    shutil.rmtree(copy / "checkpoints")
    refused(train.main, words, capsys, ("config.init_from", "no whole checkpoint"), copy)
    (copy / "config.json").unlink()
    refused(train.main, words, capsys, ("config.init_from", "config.json"), copy)
    assert not (tmp_path / "run").exists()


def foreign(pretrained, tmp_path) -> Path:
    folder = tmp_path / "foreign"
    assert convert.main(["convert.py", "export", f"--workdir={pretrained}", f"--to={folder}"]) == 0
    return folder


def spoil_config(folder: Path, **changes) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))


SPOILED = {
    "cut short": (lambda f: cut(f / "model.safetensors"), ("model.safetensors",)),
    "an architecture that is not supported": (lambda f: spoil_config(f, model_type="t5"), ("t5", "bert")),
    "other sizes": (lambda f: spoil_config(f, intermediate_size=96), ("128", "96")),
    "pickle alone": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ("pytorch_model.bin", "save_pretrained"),
    ),
    "no config": (lambda f: (f / "config.json").unlink(), ("config.json",)),
    "no tokenizer": (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "vocab.txt")], ("tokenizer",)),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_folder_that_cannot_be_trusted_is_refused(finetune, pretrained, tmp_path, capsys, spoiled):
    spoil, said = SPOILED[spoiled]
    folder = foreign(pretrained, tmp_path)
    spoil(folder)
    capsys.readouterr()
    refused(train.main, [*finetune, f"--config.init_from={folder}"], capsys, said, folder)
    assert not (tmp_path / "run").exists()
    words = ["convert.py", "import", f"--from={folder}", f"--workdir={tmp_path / 'imported'}"]
    refused(convert.main, words, capsys, said, folder)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ("convert.py", "import")),
        (["exprot"], ("exprot", "export")),
        (["export", "--to=x"], ("--workdir",)),
        (["export", "--workdir=/no/such/run", "--to=x"], ("--workdir", "/no/such/run")),
        (["import", "--from=/no/such/folder", "--workdir=x"], ("--from", "/no/such/folder")),
        (["import", "--form=x"], ("--form", "--from")),
    ],
)
def test_a_conversion_that_cannot_be_done_is_refused(capsys, words, said):
    refused(convert.main, ["convert.py", *words], capsys, said)
    assert not Path("x").exists()


# ---- translation and continuation

LOWER = [f"the {one} sees the {other}" for one in ("king", "queen", "river") for other in ("ship", "letter", "horse")]


@pytest.fixture(scope="module")
def translate(tmp_path_factory) -> list[str]:
    """The arguments of a translation run of one step, without --workdir."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("low\tup\n" + "".join(f"{text}\t{text.upper()}\n" for text in LOWER))
    words = ["train.py", "--config=configs/transformer_mt.py:smoke", f"--config.data.train=tsv:{path}"]
    return [*words, "--config.data.source=low", "--config.data.target=up", "--config.train.steps=1"]


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({"a.low": "one\ntwo\nthree\n", "a.up": "ONE\nTWO\n"}, ["parallel:{}/a.low,{}/a.up"], ("3 lines", "a.up 2")),
        ({"a.low": "one\ntwo\n", "a.up": "ONE\n \n"}, ["parallel:{}/a.low,{}/a.up"], ("a.up:2", "empty")),
        ({"a.low": "one\ntwo\n"}, ["parallel:{}/a.low"], ("config.data.train", "two files")),
        ({"a.low": "one\ntwo\n"}, ["parallel:{}/a.low,{}/b.up"], ("config.data.train", "b.up")),
        ({"a.tsv": "low\tup\none\tONE\nsix\t\ntwo\tTWO\nten\tTEN\n"}, ["tsv:{}/a.tsv"], ("a.tsv:3", "empty")),
        ({"a.tsv": "low\tup\none\tONE\n"}, ["tsv:{}/a.tsv", "--config.data.source=zh"], ("config.data.source", "'zh'")),
        ({"a.tsv": "low\tup\none\tONE\n"}, ["tsv:{}/a.tsv", "--config.data.target=zh"], ("config.data.target", "'zh'")),
        ({}, ["pydocs"], ("config.data.source", "'low'")),
        ({}, ["cldr"], ("config.data", "'low'", "zh")),
    ],
)
def test_pairs_that_are_none_are_refused(translate, tmp_path, capsys, files, words, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    spec, *more = words
    words = [*translate, f"--workdir={tmp_path / 'run'}", f"--config.data.train={spec.replace('{}', str(tmp_path))}"]
    refused(train.main, [*words, *more], capsys, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.data.target=low", ("config.data.target", "'low'")),
        ("--config.data.label_smoothing=1", ("config.data.label_smoothing", "1")),
        ("--config.data.eval_beams=0", ("config.data.eval_beams", "0")),
        ("--config.data.target_tokenizer=unigramm:512", ("config.data.target_tokenizer", "unigram:512")),
        ("--config.model.decoder_layers=-1", ("config.model.decoder_layers", "-1")),
        ("--config.model.max_positions=8", ("config.model.max_positions", "8")),
        ("--config.data.seq_len=1", ("config.data.seq_len", "1")),
    ],
)
def test_a_wrong_value_of_translation_is_refused(translate, tmp_path, capsys, flag, said):
    refused(train.main, [*translate, f"--workdir={tmp_path / 'run'}", flag], capsys, said)
    assert not (tmp_path / "run").exists()


def test_what_a_translator_cannot_do_is_refused(translate, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main([*translate, f"--workdir={run}"]) == 0
    (tmp_path / "lines").write_text("the old king\n")
    words = ["predict.py", f"--workdir={run}", f"--input={tmp_path / 'lines'}", f"--output={tmp_path / 'out'}"]
    for flags, said in (
        (["--beams=0"], ("--beams", "0")),
        (["--beams=100000"], ("--beams", "100000", "pieces of the vocabulary")),
        (["--temperature=-0.5"], ("--temperature", "-0.5")),
        (["--temperature=0.5", "--beams=4"], ("--temperature", "0.5 with --beams")),
        (["--top_k=5"], ("--top_k", "5", "--temperature")),
        (["--length_penalty=-1"], ("--length_penalty", "-1")),
        (["--max_tokens=999"], ("--max_tokens", "999", "positions")),
        (["--max_tokens=-1"], ("--max_tokens", "-1")),
        (["--batch_size=0"], ("--batch_size", "0")),
    ):
        refused(predict.main, words + flags, capsys, said, tmp_path)
    shutil.rmtree(run / "checkpoints")
    refused(predict.main, words, capsys, ("--workdir", "no whole checkpoint"), tmp_path)


def test_what_a_gpt_cannot_do_is_refused(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train.py", "--config=configs/gpt_lm.py:smoke", f"--workdir={run}", f"--config.data.train=text:{corpus}"]
    assert train.main([*words, "--config.train.steps=1", "--config.optimizer.warmup_steps=0"]) == 0
    (tmp_path / "lines").write_text("the old king\n")
    (tmp_path / "long").write_text("the old king " * 20 + "\n")
    words = ["predict.py", f"--workdir={run}", f"--output={tmp_path / 'out'}"]
    for name, flags, said in (
        ("long", ["--max_tokens=2"], ("--input", "and 2 more", "32 positions")),
        ("lines", ["--max_tokens=32"], ("--max_tokens", "32", "from 1 to 31")),
        ("lines", ["--max_tokens=0"], ("--max_tokens", "0")),
        ("lines", ["--max_tokens=4", "--temperature=-1"], ("--temperature", "-1")),
        ("lines", ["--max_tokens=4", "--temperature=1", "--top_p=0"], ("--top_p", "0")),
        ("lines", ["--max_tokens=4", "--top_p=0.9"], ("--top_p", "0.9", "--temperature")),
        ("lines", ["--max_tokens=4", "--batch_size=-2"], ("--batch_size", "-2")),
    ):
        refused(predict.main, [*words, f"--input={tmp_path / name}", *flags], capsys, said, tmp_path)
