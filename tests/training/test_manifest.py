import numpy as np
import pytest

from training import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b", "deep/empty"):
        size = 0 if name.endswith("empty") else 5000
        (tmp_path / name).write_bytes(np.random.default_rng(len(name)).bytes(size))
    manifest.write(tmp_path)
    return tmp_path


def test_a_folder_is_whole_after_its_manifest_was_written(folder):
    assert manifest.complaint(folder) == ""
    (folder / "more").write_text("what came later is not its")
    assert manifest.complaint(folder) == ""


def test_every_flipped_bit_is_found_in_files_and_in_the_manifest_itself(folder):
    generator = np.random.default_rng(0)
    for path in (folder / "a", folder / "deep" / "b", folder / manifest.NAME):
        content = path.read_bytes()
        for _ in range(60):
            place, bit = generator.integers(len(content)), generator.integers(8)
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            assert manifest.complaint(folder), (path, place, bit)
        path.write_bytes(content)
    assert manifest.complaint(folder) == ""


@pytest.mark.parametrize("name", ["a", "deep/b", "deep/empty", manifest.NAME])
def test_a_file_that_is_missing_cut_or_longer_is_named(folder, name):
    path = folder / name
    content = path.read_bytes()
    for changed in (content[:-1], content + b"x") if content else (b"x",):
        path.write_bytes(changed)
        assert name in manifest.complaint(folder)
    path.unlink()
    assert manifest.complaint(folder) == f"{name} is missing"
