import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.labels import read_labels
from data.pictures import open_pictures, split_pictures
from data.pixels import decode, read_pixels
from errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of three pictures."""
    for number, pixels in enumerate(NOISE):
        path = tmp_path / "animals" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "animals"


def pixels_of(source, **settings) -> np.ndarray:
    return read_pixels(source, log=lambda line: None, **settings).pixels


def refused(function, *said) -> UserError:
    with pytest.raises(UserError) as error:
        function()
    for part in said:
        assert part in str(error.value), str(error.value)
    return error.value


# ---- sources


def test_an_archive_of_arrays_gives_its_pictures_and_labels(tmp_path):
    labels = np.array([2, 0, 1, 1, 0, 2])
    np.savez(tmp_path / "some.npz", image=NOISE, label=labels)
    source = open_pictures(f"npz:{tmp_path / 'some.npz'}")
    assert np.array_equal(pixels_of(source), NOISE)
    assert read_labels(source, "label") == [(str(label),) for label in labels]
    assert source.where(3) == f"{tmp_path / 'some.npz'}[3]"


def test_grey_arrays_without_channels_have_one(tmp_path):
    np.savez(tmp_path / "grey.npz", x=NOISE[..., 0], y=np.arange(6))
    source = open_pictures(f"npz:{tmp_path / 'grey.npz'}", image="x", label="y")
    assert np.array_equal(pixels_of(source), NOISE[..., :1])


def test_a_folder_names_each_picture_by_the_folder_it_lies_in(folder):
    source = open_pictures(f"folder:{folder}")
    assert read_labels(source, "label") == [("cat",)] * 3 + [("dog",)] * 3
    assert np.array_equal(pixels_of(source), NOISE[[0, 2, 4, 1, 3, 5]])
    assert source.where(0).endswith("cat/0.png")


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = open_pictures("digits")
    pixels = pixels_of(source)
    assert pixels.shape == (1797, 8, 8, 1)
    assert np.abs(pixels[..., 0] / 255 * 16 - load_digits().images).max() <= 0.5 / 255 * 16
    assert [label for (label,) in read_labels(source, "label")] == [str(target) for target in load_digits().target]


def test_other_content_has_another_fingerprint(folder):
    before = open_pictures(f"folder:{folder}").fingerprint
    assert open_pictures(f"folder:{folder}").fingerprint == before
    Image.fromarray(255 - NOISE[0]).save(folder / "cat" / "0.png")
    assert open_pictures(f"folder:{folder}").fingerprint != before


def test_equal_pictures_are_held_out_together(tmp_path):
    several = np.concatenate([np.random.default_rng(1).integers(0, 256, (60, 4, 4, 1))] * 2).astype(np.uint8)
    np.savez(tmp_path / "twice.npz", image=several, label=np.zeros(120, int))
    sides = split_pictures(open_pictures(f"npz:{tmp_path / 'twice.npz'}"), "hash", 0.3)
    train, held_out = ({bytes(picture) for picture in pixels_of(side)} for side in sides)
    assert not train & held_out and len(train | held_out) == 60 and len(sides[1]) > 10


# ---- decoding


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_files_of_every_kind_give_their_pixels(tmp_path, suffix):
    Image.fromarray(NOISE[0]).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(decode(tmp_path / f"a.{suffix}"), NOISE[0])
    assert np.array_equal(decode((tmp_path / f"a.{suffix}").read_bytes()), NOISE[0])


def test_palettes_and_transparency_become_colours_and_grey_stays_grey():
    def saved(picture: Image.Image) -> bytes:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    opened = Image.fromarray(NOISE[0])
    assert decode(saved(opened.convert("P"))).shape == (8, 8, 3)
    assert np.array_equal(decode(saved(opened.convert("RGBA"))), NOISE[0])
    assert decode(saved(opened.convert("L"))).shape == (8, 8, 1)
    assert np.array_equal(decode(saved(opened.convert("L")), channels=3)[..., 2], np.asarray(opened.convert("L")))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(NOISE[0]).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "turned.png"), np.rot90(NOISE[0], -1))


def test_a_size_takes_the_middle_of_the_shorter_side():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (decode(wide, size=4) == 200).all()
    assert decode(wide, size=2).shape == (2, 2, 3)


def test_a_second_reading_decodes_nothing(folder, monkeypatch):
    source = open_pictures(f"folder:{folder}")
    first = np.array(pixels_of(source))
    monkeypatch.setattr("data.pixels.decode", lambda *given, **settings: pytest.fail("decoded again"))
    assert np.array_equal(pixels_of(source), first)


# ---- what users get wrong


def test_a_corrupt_picture_is_named_or_left_out_and_counted(folder):
    (folder / "cat" / "2.png").write_bytes((folder / "cat" / "2.png").read_bytes()[:60])
    source = open_pictures(f"folder:{folder}")
    refused(lambda: pixels_of(source), "cat/2.png", "cannot be decoded", "on_error=skip")
    found = read_pixels(source, skip=True, log=lambda line: None)
    assert found.skipped == 1 and found.records.tolist() == [0, 2, 3, 4, 5]
    assert np.array_equal(found.pixels, NOISE[[0, 4, 1, 3, 5]])


def test_pictures_of_several_sizes_or_channels_are_told_apart(folder):
    Image.fromarray(NOISE[0][:6, :6]).save(folder / "dog" / "9.png")
    source = open_pictures(f"folder:{folder}")
    refused(lambda: pixels_of(source), "dog/9.png", "6 × 6", "8 × 8", "image_size")
    assert pixels_of(source, size=6).shape == (7, 6, 6, 3)
    Image.fromarray(NOISE[0]).convert("L").save(folder / "dog" / "9.png")
    source = open_pictures(f"folder:{folder}")
    refused(lambda: pixels_of(source), "dog/9.png", "1 channel,", "3 channels", "channels=3")
    assert pixels_of(source, channels=1).shape == (7, 8, 8, 1)


def test_a_folder_that_is_none_or_lacks_pictures_is_refused(folder, tmp_path):
    (folder / "bird").mkdir()
    (folder / "bird" / "notes.txt").write_text("no picture")
    refused(lambda: open_pictures(f"folder:{folder}"), "bird", "holds no picture")
    refused(lambda: open_pictures(f"folder:{folder / 'cat'}"), "no folders in it")
    refused(lambda: open_pictures(f"folder:{tmp_path / 'none'}"), "no folder")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a", "b")
    refused(lambda: open_pictures(f"folder:{tmp_path / 'all.zip'}"), "an archive", "Unpack it")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": NOISE.astype(np.float32), "label": np.arange(6)}, ("float32", "uint8")),
        ({"image": NOISE.transpose(0, 3, 1, 2), "label": np.arange(6)}, ("channels first", "transpose")),
        ({"image": NOISE, "label": np.arange(5)}, ("[5]", "one label for each")),
        ({"image": NOISE, "label": np.array([0, 1, -1, 0, 1, 0])}, ("label[2]", "-1", "from 0")),
        ({"image": NOISE, "label": np.arange(6) / 2}, ("float64", "whole numbers")),
        ({"picture": NOISE}, ("config.data.image", "picture")),
        ({"image": np.array([None, {}], object)}, ("no NumPy archive of plain arrays",)),
    ],
)
def test_arrays_that_are_no_labelled_pictures_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(lambda: open_pictures(f"npz:{tmp_path / 'bad.npz'}"), *said)


def test_files_that_are_no_archive_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    refused(lambda: open_pictures(f"npz:{tmp_path / 'text.npz'}"), "text.npz")
    np.savez(tmp_path / "cut.npz", image=NOISE)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-200])
    refused(lambda: open_pictures(f"npz:{tmp_path / 'cut.npz'}"), "cut.npz")
    np.save(tmp_path / "one.npy", NOISE)
    refused(lambda: open_pictures(f"npz:{tmp_path / 'one.npy'}"), "single array")
    refused(lambda: open_pictures("csv:some.csv"), "csv:some.csv", "npz, folder, tfds, digits")
    refused(lambda: open_pictures("pictures/"), "Did you mean npz:")
