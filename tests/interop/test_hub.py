"""Names on the Hub, without the Hub: what is asked for, what is in the cache, and what is said when it is neither."""

import fnmatch
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from errors import UserError
from interop.hub import FILES, download

RESPONSE = SimpleNamespace(headers={}, request=None, status_code=404)


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("name", ["hf:owner/model", "owner/model"])
def test_only_what_is_read_is_fetched(tmp_path, monkeypatch, name):
    asked, lines = {}, []

    def snapshot_download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download(name, log=lines.append) == tmp_path
    assert asked == {"name": "owner/model", "patterns": FILES} and lines == ["hub: fetching owner/model"]


def test_no_pickle_no_code_and_no_weights_for_others_are_fetched():
    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in FILES)

    for name in ("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "vocab.txt", "tokenizer.json"):
        assert wanted(name), name
    for name in ("pytorch_model.bin", "model.pt", "tf_model.h5", "onnx/model.onnx", "modeling_bert.py", "README.md"):
        assert not wanted(name), name
    assert not wanted("onnx/model.safetensors") and not wanted("1_Pooling/config.json")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "the Hub has no model owner/model"),
        (errors.GatedRepoError("403", response=RESPONSE), "hf:owner/model is gated"),
        (errors.LocalEntryNotFoundError("offline"), "not in the cache"),
        (errors.HfHubHTTPError("500 Server Error\n\nlong\ntext", response=RESPONSE), "could not be fetched"),
        (ConnectionError("reset"), "could not be fetched"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_is_said_in_three_lines(monkeypatch, error, said):
    def snapshot_download(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=said) as raised:
        download("owner/model", "--from", quiet)
    assert raised.value.field == "--from" and len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["", "two words", "a/b/c", "owner//model", "-x"])
def test_what_is_no_name_is_refused_before_the_network(name):
    with pytest.raises(UserError, match="no name on the Hub"):
        download(f"hf:{name}", log=quiet)


def test_a_model_without_safetensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    with pytest.raises(UserError, match="no weights as safetensors"):
        download("owner/model", log=quiet)


def test_without_a_network_the_cache_answers_without_noise(tmp_path):
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("0123456789abcdef" * 3)[:40]
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text(snapshot.name)
    program = "import sys; from interop.hub import download; print(download(sys.argv[1], log=lambda line: None))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, "hf:owner/model"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == (str(snapshot), "")
