"""Each mistake a user can make with pictures: status 2, at most three lines with its mend, and nothing written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convert
import eval as evaluation
import predict
import train
from cli import commandline

CONFIG = "--config=configs/vit_classify.py:smoke"


def refused(main, words, capsys, said) -> None:
    with pytest.raises(SystemExit) as stop:
        commandline.run(lambda argv: main(words))
    printed = capsys.readouterr().err
    assert stop.value.code == 2, printed
    assert 1 <= len(printed.splitlines()) <= 3, printed
    for part in said:
        assert part in printed, printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of ten pictures, 8 × 8 with colours."""
    root = tmp_path_factory.mktemp("animals")
    generator = np.random.default_rng(0)
    for number in range(20):
        path = root / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "animals"
    words = [f"--config.data.train=folder:{folder}", "--config.train.steps=1", "--config.train.batch_size=4"]
    assert train.main(["train.py", CONFIG, f"--workdir={workdir}", *words]) == 0
    return workdir


def spoiled(folder: Path, tmp_path: Path, how: str) -> str:
    import shutil

    copy = tmp_path / "animals"
    shutil.copytree(folder, copy)
    first = copy / "cat" / "00.png"
    if how == "corrupt":
        first.write_bytes(first.read_bytes()[:50])
    elif how == "empty":
        first.write_bytes(b"")
    elif how == "size":
        Image.open(copy / "dog" / "01.png").resize((6, 8)).save(copy / "dog" / "03.png")
    elif how == "channels":
        Image.open(copy / "dog" / "01.png").convert("L").save(copy / "dog" / "03.png")
    elif how == "class":
        (copy / "bird").mkdir()
    elif how == "flat":
        copy = copy / "cat"
    elif how == "archive":
        shutil.make_archive(str(tmp_path / "animals"), "zip", copy)
        copy = tmp_path / "animals.zip"
    elif how == "wide":
        for path in copy.rglob("*.png"):
            Image.open(path).resize((12, 8)).save(path)
    return f"folder:{copy}"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("corrupt", ("cat/00.png", "cannot be decoded", "config.data.on_error=skip")),
        ("empty", ("cat/00.png", "cannot be decoded")),
        ("size", ("dog/03.png", "8 × 6", "config.data.image_size")),
        ("channels", ("dog/03.png", "1 channel", "config.data.channels")),
        ("class", ("bird", "holds no picture")),
        ("flat", ("no folders in it",)),
        ("archive", ("animals.zip", "an archive", "Unpack")),
        ("wide", ("8 × 12", "config.data.image_size=8")),
    ],
)
def test_pictures_that_cannot_be_learned_from_are_refused(folder, tmp_path, capsys, how, said):
    words = ["train.py", CONFIG, f"--workdir={tmp_path / 'run'}"]
    refused(train.main, [*words, f"--config.data.train={spoiled(folder, tmp_path, how)}"], capsys, said)
    assert not (tmp_path / "run").exists()


def test_a_corrupt_picture_may_be_left_out_and_is_counted(folder, tmp_path, capsys):
    words = ["train.py", CONFIG, f"--workdir={tmp_path / 'run'}", "--config.data.on_error=skip"]
    words += [f"--config.data.train={spoiled(folder, tmp_path, 'corrupt')}", f"--config.data.valid=folder:{folder}"]
    assert train.main([*words, "--config.train.steps=1", "--config.train.batch_size=4"]) == 0
    assert "train: 19 pictures of 8 × 8 × 3 · 1 that cannot be decoded left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.data.train=folder:/no/such/folder", ("config.data.train", "/no/such/folder")),
        ("--config.data.train=npz:/no/such/file.npz", ("config.data.train", "/no/such/file.npz")),
        ("--config.data.train=foldr:x", ("config.data.train", "Did you mean folder:x")),
        ("--config.data.train=digits:x", ("config.data.train", "digits")),
        ("--config.data.image_size=7", ("config.model.patch_size", "2 does not divide")),
        ("--config.data.image_size=-1", ("config.data.image_size", "-1")),
        ("--config.data.channels=2", ("config.data.channels", "2")),
        ("--config.data.on_error=ignore", ("config.data.on_error", "skip")),
        ("--config.data.augment=crop", ("config.data.augment", "crop")),
        ("--config.data.augment=rand:2", ("config.data.augment", "rand")),
        ("--config.data.mean=(0.5,0.5)", ("config.data.mean",)),
        ("--config.data.std=(0,)", ("config.data",)),
        ("--config.data.tokenizer=char", ("config.data.tokenizer",)),
        ("--config.model.name=lstm", ("config.model.name", "lstm has no head")),
        ("--config.model.num_labels=3", ("config.model.num_labels", "3")),
        ("--config.model.stochastic_depth=1", ("config.model.stochastic_depth", "1")),
        ("--config.model.layer_scale=-1", ("config.model.layer_scale", "-1")),
        ("--config.train.ema=1", ("config.train.ema", "1")),
        ("--config.train.best_metric=elbo", ("config.train.best_metric", "elbo")),
        ("--config.init_from=/no/such/run", ("config.init_from", "/no/such/run")),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(tmp_path, capsys, flag, said):
    refused(train.main, ["train.py", CONFIG, f"--workdir={tmp_path / 'run'}", flag], capsys, said)
    assert not (tmp_path / "run").exists()


def test_weights_of_pictures_are_none_for_texts(trained, labelled, tmp_path, capsys):
    words = ["train.py", "--config=configs/bert_classify.py:smoke", f"--config.data.train=csv:{labelled}"]
    words += [f"--workdir={tmp_path / 'run'}", f"--config.init_from={trained}"]
    refused(train.main, words, capsys, ("config.init_from", "vit", "no head for config.task=classification"))
    assert not (tmp_path / "run").exists()


def test_labels_that_no_training_picture_has_are_refused(folder, trained, tmp_path, capsys):
    (tmp_path / "more" / "bird").mkdir(parents=True)
    Image.open(folder / "cat" / "00.png").save(tmp_path / "more" / "bird" / "0.png")
    words = ["eval.py", f"--workdir={trained}", f"--data=folder:{tmp_path / 'more'}"]
    refused(evaluation.main, words, capsys, ("bird/0.png", "'bird'", "Known labels"))
    assert not list((trained / "eval").glob("*")) if (trained / "eval").exists() else True


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/no/such/picture.png", ("--input", "/no/such/picture.png", "No such file")),
        ("{}/notes.txt", ("--input", "notes.txt", "no picture")),
        ("{}/large.png", ("--input", "large.png", "9 × 9", "8 × 8")),
    ],
)
def test_a_line_that_names_no_picture_is_refused(trained, tmp_path, capsys, line, said):
    (tmp_path / "notes.txt").write_text("no picture")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "paths.txt").write_text(line.format(tmp_path) + "\n")
    words = ["predict.py", f"--workdir={trained}", f"--input={tmp_path / 'paths.txt'}"]
    refused(predict.main, [*words, f"--output={tmp_path / 'out.jsonl'}"], capsys, said)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_that_transformers_has_no_class_for_is_not_exported(tmp_path, folder, capsys):
    words = ["train.py", CONFIG, f"--workdir={tmp_path / 'run'}", f"--config.data.train=folder:{folder}"]
    more = ["--config.model.name=mlp", "--config.train.steps=1", "--config.train.batch_size=4"]
    assert train.main([*words, *more]) == 0
    capsys.readouterr()
    words = ["convert.py", "export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]
    refused(convert.main, words, capsys, ("config.model.name", "'mlp'"))
    assert not (tmp_path / "out").exists()
