"""safetensors files: what is read of a whole one, and that none which is not whole is read."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from errors import UserError
from interop.tensors import find_tensors, read_header, write_tensors


def raw(header, data: bytes = b"", length: int | None = None) -> bytes:
    """A file by hand: the header's length, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_tensors_come_back_as_they_were_written(tmp_path):
    draw = np.random.default_rng(0)
    tensors = {
        "kernel": draw.normal(size=(5, 3)).astype(np.float32).T,  # not contiguous
        "strided": draw.normal(size=(4, 6)).astype(np.float32)[::2, ::3],
        "scalar": np.float32(3).reshape(()),
        "none": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    header = read_header(path, "--from")
    assert {name: stored.shape for name, stored in header.items()} == {n: a.shape for n, a in tensors.items()}
    for name, array in tensors.items():
        np.testing.assert_array_equal(header[name].read(), array)
    with safe_open(path, "numpy") as stream:
        assert stream.metadata() == {"format": "pt"}, "transformers asks for it"
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode, "others may read it as they may any file"


def test_every_kind_of_float_becomes_float32(tmp_path):
    values = np.array([[0.0, -1.5, 2.0**-14], [1e-3, 65504.0, -np.pi]], np.float64)
    bfloat16 = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    data = values.tobytes() + values.astype(np.float32).tobytes() + values.astype(np.float16).tobytes()
    header = {
        "wide": tensor(0, 48, (2, 3), "F64"),
        "plain": tensor(48, 72, (2, 3), "F32"),
        "half": tensor(72, 84, (2, 3), "F16"),
        "brain": tensor(84, 96, (2, 3), "BF16"),
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw(header, data + bfloat16.tobytes()))
    found = {name: stored.read() for name, stored in read_header(path, "--from").items()}
    assert all(array.dtype == np.float32 for array in found.values())
    np.testing.assert_array_equal(found["wide"], values.astype(np.float32))
    np.testing.assert_array_equal(found["plain"], values.astype(np.float32))
    np.testing.assert_array_equal(found["half"], values.astype(np.float16))
    np.testing.assert_allclose(found["brain"], values, rtol=2**-7)
    assert found["brain"][0, 1] == -1.5 and found["brain"][0, 2] == 2.0**-14


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header too small"),
        (b"\x01\x00", "header too small"),
        (raw(b"hello"), "invalid JSON"),
        (raw(b"{}", length=50), "invalid header length"),
        (raw(b"{}", length=10**15), "header too large"),
        (raw([1, 2]), "invalid JSON"),
        (raw(b'{"\xff": 1}'), "invalid UTF-8"),
        (raw({"a": tensor(0, 8)}, bytes(4)), "not fully covered"),  # cut off
        (raw({"a": tensor(0, 8)}, bytes(12)), "not fully covered"),  # something behind
        (raw({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "invalid offset"),  # overlap
        (raw({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)), "invalid offset"),  # gap
        (raw({"a": tensor(8, 16)}, bytes(16)), "invalid offset"),  # gap at the front
        (raw({"a": tensor(0, 80)}, bytes(8)), "invalid"),  # out of bounds
        (raw({"a": tensor(8, 0)}, bytes(8)), "invalid"),
        (raw({"a": tensor(0, 8, (3,))}, bytes(8)), "invalid shape"),
        (raw({"a": tensor(0, 8, (-2,))}, bytes(8)), "invalid"),
        (raw({"a": tensor(0, 8, (2**62, 8))}, bytes(8)), "overflow"),
        (raw({"a": tensor(0, 8, dtype="X9")}, bytes(8)), "X9"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        find_tensors(tmp_path, "--from")
    assert raised.value.field == "--from" and str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def test_no_cut_of_a_file_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((3, 2), np.float32), "b": np.ones(4, np.float32)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            find_tensors(tmp_path, "--from")


def shards(folder) -> dict[str, np.ndarray]:
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    save_file({"a": tensors["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": tensors["b"]}, folder / "model-00002-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": {name: f"model-0000{i}-of-00002.safetensors" for i, name in ((1, "a"), (2, "b"))},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def test_shards_are_found_through_their_index(tmp_path):
    tensors = shards(tmp_path)
    found = find_tensors(tmp_path, "--from")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name].read(), array)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("", "no index"),
        ("[]", "no index"),
        ('{"weight_map": 3}', "no index"),
        ('{"weight_map": {"a": 3}}', "no index"),
        ('{"weight_map": {"a": "model-00003-of-00002.safetensors"}}', "model-00003-of-00002.safetensors"),
        ('{"weight_map": {"a": ""}}', "not there"),
        ('{"weight_map": {"c": "model-00001-of-00002.safetensors"}}', "seeks c"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', "outside.safetensors"),
    ],
)
def test_a_broken_index_and_a_missing_shard_are_refused(tmp_path, index, said):
    folder = tmp_path / "model"
    folder.mkdir()
    shards(folder)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=said):
        find_tensors(folder, "--from")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickle_is_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(UserError, match="pickle") as raised:
        find_tensors(tmp_path, "--from")
    assert name in raised.value.value and "save_pretrained" in raised.value.mend
    assert os.listdir(tmp_path) == [name]


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        find_tensors(tmp_path, "--from")
