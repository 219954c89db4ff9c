import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.labels import label_order, one_of, read_labels, read_numbers
from data.pictures import open_pictures
from data.pixels import read_pixels
from data.sources import open_source
from errors import UserError

ROOT = Path(__file__).parent.parent.parent
COUNTS = {"train": 30, "test": 4}


class RootstockNotes(tfds.core.GeneratorBasedBuilder):
    """A small data set, written to disk as tfds writes the big ones."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["no", "yes"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            yield i, {"sentence": f"{split} números {i}", "label": i % 2}


class RootstockPairs(tfds.core.GeneratorBasedBuilder):
    """Translations, laid out as those of tfds: a column for each language."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(["en", "es"]))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(40):
            yield i, {"en": f"number {i} of all", "es": f"número {i} de todos"}


class RootstockSquares(tfds.core.GeneratorBasedBuilder):
    """Pictures, each of one grey, brighter and brighter; `folder` holds them as files: arrays would need TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    folder: Path

    def _info(self):
        features = {"image": tfds.features.Image(shape=(6, 6, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            Image.fromarray(np.full((6, 6, 3), 40 * i, np.uint8)).save(self.folder / f"{i}.png")
            yield i, {"image": str(self.folder / f"{i}.png"), "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    RootstockSquares.folder = tmp_path_factory.mktemp("squares")
    tfds.core.utils.tqdm_utils.disable_progress_bar()
    for builder in (RootstockNotes, RootstockPairs, RootstockSquares):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    # tfds reads the variable when it is imported; a user sets it before that.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared))
    return prepared


def texts(source) -> list[str]:
    return [source[i]["text"] for i in range(len(source))]


def test_a_prepared_data_set_gives_its_records_with_random_access(data_dir):
    source = open_source("tfds:rootstock_notes", text="sentence")
    assert sorted(texts(source)) == sorted(f"train números {i}" for i in range(30))
    record = source[17]
    assert record["text"] == record["sentence"] and record["label"] in (0, 1)
    assert source.where(17) == "tfds:rootstock_notes: record 17"
    for index in (-1, 30):
        with pytest.raises(IndexError):
            source[index]


def test_pictures_come_with_their_labels(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path))
    source = open_pictures("tfds:rootstock_squares")
    pixels = read_pixels(source, log=lambda line: None).pixels
    assert pixels.shape == (6, 6, 6, 3) and (pixels == pixels[:, :1, :1, :1]).all()
    brightness = pixels[:, 0, 0, 0] // 40
    assert sorted(brightness) == list(range(6))
    assert [int(label) for (label,) in read_labels(source, "label")] == [i % 2 for i in brightness]
    with pytest.raises(UserError, match=r"columns of rootstock_notes: sentence, label"):
        open_pictures("tfds:rootstock_notes")
    with pytest.raises(UserError, match="no picture"):
        open_pictures("tfds:rootstock_notes", image="sentence")[0]


def test_pairs_of_two_languages_stay_together(data_dir):
    sides = [open_source("tfds:rootstock_pairs", text=language) for language in ("en", "es")]
    for english, spanish in zip(*(texts(side) for side in sides), strict=True):
        number = english.split()[1]
        assert (english, spanish) == (f"number {number} of all", f"número {number} de todos")


def test_a_split_is_chosen_by_name_or_share(data_dir):
    assert sorted(texts(open_source("tfds:rootstock_notes@test", text="sentence"))) == [
        f"test números {i}" for i in range(4)
    ]
    half = open_source("tfds:rootstock_notes@train[:50%]", text="sentence")
    rest = open_source("tfds:rootstock_notes@train[50%:]", text="sentence")
    assert len(half) == len(rest) == 15 and not set(texts(half)) & set(texts(rest))
    prints = {open_source(f"tfds:rootstock_notes@{s}", text="sentence").fingerprint for s in ("train", "test")}
    assert len({*prints, half.fingerprint, rest.fingerprint}) == 4


def test_its_class_numbers_are_labels_and_numbers(data_dir):
    source = open_source("tfds:rootstock_notes", text="sentence")
    classes = [source[i]["label"] for i in range(30)]
    found = read_labels(source, "label")
    assert label_order(found) == ("0", "1")
    assert one_of(found, ("0", "1"), source).tolist() == read_numbers(source, "label").tolist() == classes


def test_a_user_reads_it_without_its_code_and_without_tensorflow(prepared):
    program = """
import json, sys
from data.sources import open_source
source = open_source("tfds:rootstock_notes@test", text="sentence")
print(json.dumps([sorted(source[i]["text"] for i in range(len(source))), "tensorflow" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | {"TFDS_DATA_DIR": str(prepared)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[f"test números {i}" for i in range(4)], False]


@pytest.mark.parametrize(
    ("spec", "text", "said"),
    [
        ("tfds:rootstock_notez", "sentence", "no prepared data set 'rootstock_notez'"),
        ("tfds:rootstock_notes@valid", "sentence", "no split 'valid'"),
        ("tfds:rootstock_notes", "body", "columns of rootstock_notes: sentence, label"),
    ],
)
def test_what_is_not_there_is_the_users_mistake_and_what_is_there_is_listed(data_dir, spec, text, said):
    with pytest.raises(UserError) as caught:
        open_source(spec, text=text)
    assert said in str(caught.value)


def test_a_column_that_is_no_text_is_named(data_dir):
    source = open_source("tfds:rootstock_notes", text="label")
    with pytest.raises(UserError, match="'label' of record 0 is no UTF-8 text"):
        source[0]


def test_a_data_set_that_needs_tensorflow_is_refused_with_the_mend(tmp_path, data_dir, monkeypatch):
    info = Path(data_dir) / "rootstock_notes" / "1.0.0" / "dataset_info.json"
    content = json.loads(info.read_text())
    copy = tmp_path / "rootstock_notes" / "1.0.0"
    copy.mkdir(parents=True)
    for file in info.parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / info.name).write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="needs TensorFlow"):
        open_source("tfds:rootstock_notes", text="sentence")
