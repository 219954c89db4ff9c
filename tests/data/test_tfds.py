import pytest
import tensorflow_datasets as tfds

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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.core.utils.tqdm_utils.disable_progress_bar()
    RootstockNotes(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    # tfds reads the variable when it is imported; a user sets it before that.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared))
    return prepared
