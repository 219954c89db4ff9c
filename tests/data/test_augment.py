import math
import zlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from data.augment import OPERATIONS, STREAM, Augmentation, apply_operations
from data.masking import uniform
from errors import UserError

UNSIGNED = "identity autocontrast equalize solarize posterize".split()
SIGNED = "rotate color contrast brightness sharpness shear_x shear_y translate_x translate_y".split()
EVERYTHING = "crop:4, flip, jitter:0.4, rand:2:9, erase:0.5"


def pictures(batch: int, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Noise between two levels, gradients and flat pictures by turns; read-only."""
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(0, 257, (2, batch, 1, 1, channels)), axis=0)
    noise = rng.integers(edges[0], np.maximum(edges[1], edges[0] + 1), (batch, height, width, channels))
    y, x = np.ogrid[:height, :width]
    slopes = rng.uniform(-20, 20, (2, batch, 1, 1, channels))
    gradient = slopes[0] * y[:, :, None] + slopes[1] * x[:, :, None] + 128
    kind = np.arange(batch)[:, None, None, None] % 4
    made = np.select([kind < 2, kind == 2], [noise, gradient], edges[0]).clip(0, 255).astype(np.uint8)
    made.setflags(write=False)
    return made


def augmented(spec: str, pixels: np.ndarray, *, seed: int = 5, epoch: int = 0) -> np.ndarray:
    return Augmentation(spec, seed)(pixels, np.arange(len(pixels)), np.full(len(pixels), epoch))


def is_about(observed: float, share: float, count: int) -> bool:
    """Within four sigma of what independent draws give."""
    return abs(observed - share * count) <= 4 * math.sqrt(share * (1 - share) * count)


def are_uniform(counts: np.ndarray) -> bool:
    expected = counts.sum() / len(counts)
    return abs(((counts - expected) ** 2 / expected).sum() - (len(counts) - 1)) < 5 * math.sqrt(2 * (len(counts) - 1))


def by_pillow(image: Image.Image, name: str, sign: int, magnitude: float) -> Image.Image:
    """The operation as Pillow's users write it."""
    amount = sign * magnitude / 10
    affine = {
        "shear_x": (1, 0.3 * amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * amount, 1, 0),
        "translate_x": (1, 0, round(0.45 * amount * image.width), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, round(0.45 * amount * image.height)),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name in ("color", "contrast", "brightness", "sharpness"):
        return getattr(ImageEnhance, name.capitalize())(image).enhance(1 + 0.9 * amount)
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(30 * amount),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - magnitude / 10)),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * magnitude / 10)),
    }[name]()


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (17, 26, 3), (33, 20, 1), (2, 3, 3), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", UNSIGNED + SIGNED)
def test_an_operation_gives_exactly_what_pillow_gives(name, shape):
    for seed, magnitude in enumerate((0, 1, 2.5, 5, 7, 9, 10)):
        pixels = pictures(8, *shape, seed=seed)
        signs = np.where(np.arange(8) < 4, 1, -1)
        got = apply_operations(pixels, np.full(8, OPERATIONS.index(name)), signs, magnitude)
        assert got.dtype == np.uint8 and got.shape == pixels.shape
        for i in range(8):
            wanted = np.asarray(by_pillow(as_image(pixels[i]), name, signs[i], magnitude)).reshape(shape)
            np.testing.assert_array_equal(got[i], wanted)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (5, 9, 4), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("seed", [0, -1, 2**70])
def test_a_row_is_augmented_alike_in_any_batch(shape, seed):
    pixels = pictures(64, *shape)
    rows, epochs = np.arange(64) * 31 - 1, np.arange(64) % 3
    augmentation = Augmentation(EVERYTHING, seed)
    whole = augmentation(pixels, rows, epochs)
    assert whole.shape == pixels.shape and whole.dtype == np.uint8
    for some in (np.array([40, 3, 17]), np.arange(64)[::-1], np.arange(0)):
        part = augmentation(pixels[some], rows[some], epochs[some])
        assert part.shape == (len(some), *shape)
        np.testing.assert_array_equal(part, whole[some])
    for i in range(0, 64, 7):
        alone = Augmentation(EVERYTHING, seed)(pixels[[i]], rows[[i]], epochs[[i]])
        np.testing.assert_array_equal(alone[0], whole[i])


@pytest.mark.parametrize("word", ["crop:4", "flip", "jitter:0.4", "erase:1", "rand:2:9"])
def test_a_word_draws_anew_for_each_row_epoch_and_seed(word):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8).repeat(64, axis=0)
    first = augmented(word, pixels)
    for other in (augmented(word, pixels, epoch=1), augmented(word, pixels, seed=6), np.roll(first, 1, axis=0)):
        assert (first == other).all((1, 2, 3)).mean() < (0.8 if word == "flip" else 0.3)


def test_pictures_on_disk_are_read_only(tmp_path):
    before = pictures(32, 16, 16, 3)[:, :, ::-1]  # nor need they be contiguous
    before.tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=before.shape)
    writable = before.copy()
    for spec in (EVERYTHING, *EVERYTHING.split(",")):
        np.testing.assert_array_equal(augmented(spec, mapped), augmented(spec, before))
        result = augmented(spec, writable)
        result[:] = 0  # the result is the caller's own
        np.testing.assert_array_equal(writable, before)


@pytest.mark.parametrize("height, width, channels, pad", [(8, 8, 1, 4), (6, 10, 3, 2), (5, 7, 2, 9), (4, 4, 3, 0)])
def test_a_crop_is_a_window_of_the_padded_picture_and_all_are_equally_frequent(height, width, channels, pad):
    picture = np.random.default_rng(0).integers(1, 256, (height, width, channels)).astype(np.uint8)
    padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
    places = [(top, left) for top in range(2 * pad + 1) for left in range(2 * pad + 1)]
    windows = [padded[top : top + height, left : left + width].tobytes() for top, left in places]
    seen = [result.tobytes() for result in augmented(f"crop:{pad}", picture[None].repeat(40 * len(places), axis=0))]
    assert set(seen) <= set(windows)
    if len(set(windows)) == len(windows) > 1:
        assert are_uniform(np.array([seen.count(window) for window in windows]))


@pytest.mark.parametrize("seed", [0, 1, -2])
def test_half_of_the_pictures_are_mirrored_left_to_right(seed):
    pixels = pictures(1, 6, 9, 3).repeat(2_000, axis=0)
    result = augmented("flip", pixels, seed=seed)
    mirrored = (result == pixels[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(result[~mirrored], pixels[~mirrored])
    assert is_about(mirrored.sum(), 0.5, 2_000)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.0, 0.4, 2.0])
def test_jitter_is_pillows_brightness_contrast_and_color_by_factors_within_its_strength(strength, channels):
    pixels = pictures(40, 11, 9, channels)
    result = augmented(f"jitter:{strength}", pixels)
    least, most = max(0, 1 - strength), 1 + strength
    factors = least + (most - least) * uniform(5, np.zeros(40, int), np.arange(40), STREAM, 3)
    for i in range(40):
        image = ImageEnhance.Brightness(as_image(pixels[i])).enhance(factors[i, 0])
        image = ImageEnhance.Contrast(image).enhance(factors[i, 1])
        image = ImageEnhance.Color(image).enhance(factors[i, 2])
        np.testing.assert_array_equal(result[i], np.asarray(image).reshape(pixels[i].shape))


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_have_no_saturation_unless_their_channels_are_three(channels):
    pixels = pictures(40, 8, 8, channels)
    as_wide_grey = pixels.reshape(40, 8, 8 * channels, 1)
    np.testing.assert_array_equal(
        augmented("jitter:0.8", pixels), augmented("jitter:0.8", as_wide_grey).reshape(pixels.shape)
    )
    color = np.full(40, OPERATIONS.index("color"))
    np.testing.assert_array_equal(apply_operations(pixels, color, np.ones(40), 9), pixels)


@pytest.mark.parametrize("height, width", [(32, 32), (20, 40), (64, 8)])
def test_an_erased_box_has_the_sizes_it_should_and_lies_anywhere(height, width):
    before = np.full((1_500, height, width, 3), 77, np.uint8)
    found = []
    for picture in (augmented("erase:1", before) != before).any(-1):
        lines, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        found.append((lines[0], columns[0], np.ptp(lines) + 1, np.ptp(columns) + 1))
        assert picture[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.95
    top, left, high, wide = np.array(found).T
    # The sides are rounded to whole pixels, so that the true ones are up to half a pixel off.
    assert ((high - 0.5) * (wide - 0.5) <= 0.33 * height * width).all()
    free = (high < height) & (wide < width)
    assert ((high + 0.5) * (wide + 0.5) >= 0.02 * height * width)[free].all()
    assert ((high + 0.5) / (wide - 0.5) >= 0.3)[free].all() and ((high - 0.5) / (wide + 0.5) <= 1 / 0.3)[free].all()
    for start, length, size in ((top, high, height), (left, wide, width)):
        assert start.min() == 0 and (start + length).max() == size
        relative = (start / np.maximum(size - length, 1))[size - length > 3]
        assert abs(relative.mean() - 0.5) < 5 / math.sqrt(12 * len(relative))
    # What would be wider than the picture is as wide as it.
    areas = np.linspace(0.02, 0.33, 1_000) * height * width
    too_wide = np.clip((areas / (width - 0.5) ** 2 - 0.3) / (1 / 0.3 - 0.3), 0, 1).mean()
    assert is_about((wide == width).sum(), too_wide, 1_500)
    if height == width == 32:
        assert (high * wide).min() < 31 and (high * wide).max() > 307 and abs((high * wide).mean() - 179) < 10
        assert (high / wide).min() < 0.45 and (high / wide).max() > 3


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_erasing_has_its_probability_and_its_noise_is_uniform(probability):
    before = np.full((1_600, 16, 16, 3), 77, np.uint8)
    result = augmented(f"erase:{probability}", before)
    erased = (result != before).any((1, 2, 3))
    assert is_about(erased.sum(), probability, 1_600)
    np.testing.assert_array_equal(result[~erased], before[~erased])
    noise = result[erased].reshape(-1, 16 * 16 * 3).astype(float)
    noise[noise == 77] = np.nan
    if probability == 0.25:  # not only boxes of some sizes
        assert abs(np.isfinite(noise).mean() - 0.175) < 0.02
    if probability == 1:
        counts = np.bincount(noise[np.isfinite(noise)].astype(int), minlength=256)
        assert are_uniform(np.delete(counts, 77))
        # Values are tied neither to each other, nor to the next picture's, nor to the box.
        sizes = np.isfinite(noise).sum(1, keepdims=True) + 0 * noise[:, :40]
        pairs = [(noise[:, 1:], noise[:, :-1]), (noise[:, 4:], noise[:, :-4]), (noise[1:], noise[:-1])]
        for one, other in pairs + [(noise[:, [i]], sizes[:, [i]]) for i in range(40)]:
            both = np.isfinite(one + other)
            assert abs(np.corrcoef(one[both], other[both])[0, 1]) < 5 / math.sqrt(both.sum())


def outcomes(pixels: np.ndarray, magnitude: float) -> tuple[np.ndarray, np.ndarray]:
    """All operations with both signs on each of the pictures [28 × pictures], and their numbers."""
    number = np.arange(28).repeat(len(pixels))
    pixels = np.tile(pixels, (28, 1, 1, 1))
    return apply_operations(pixels, number // 2, np.where(number % 2, -1, 1), magnitude), number


@pytest.mark.parametrize("seed", [0, 1])
def test_rand_draws_operations_and_signs_uniformly(seed):
    picture = np.random.default_rng(1).integers(30, 220, (1, 24, 24, 3)).astype(np.uint8)
    number_of = {result.tobytes(): number for result, number in zip(*outcomes(picture, 9), strict=True)}
    assert len(OPERATIONS) == 14 and len(number_of) == len(UNSIGNED + SIGNED + SIGNED)
    results = augmented("rand:1:9", picture.repeat(4_200, axis=0), seed=seed)
    seen = np.array([number_of[result.tobytes()] for result in results])
    assert are_uniform(np.bincount(seen // 2, minlength=14))
    for name in SIGNED:
        mine = seen[seen // 2 == OPERATIONS.index(name)]
        assert is_about((mine % 2).sum(), 0.5, len(mine))


def test_rand_applies_its_operations_one_after_the_other_and_draws_them_independently():
    picture = np.random.default_rng(1).integers(30, 220, (1, 24, 24, 3)).astype(np.uint8)
    once, _ = outcomes(picture, 6)
    possible = {result.tobytes() for result in outcomes(once, 6)[0]}
    seen = {result.tobytes() for result in augmented("rand:2:6", picture.repeat(4_000, axis=0))}
    assert seen <= possible and len(seen) > 0.97 * len(possible) and len(possible) > 400


def test_words_draw_independently_of_each_other():
    count = 3_000
    pixels = np.arange(6, dtype=np.uint8)[None, None, :, None].repeat(count, axis=0)
    twice = (augmented("flip,flip", pixels) != pixels).any((1, 2, 3))
    assert is_about(twice.sum(), 0.5, count)  # 0 if both words had the same draws
    once = (augmented("flip", pixels) != pixels).any((1, 2, 3))
    assert is_about((twice & once).sum(), 0.25, count)


def test_no_words_alter_nothing():
    pixels = pictures(16, 8, 8, 3)
    assert augmented("", pixels) is pixels and augmented(" ", pixels) is pixels


def test_words_work_in_the_order_written():
    white = np.full((100, 8, 8, 1), 255, np.uint8)
    # A crop this far away leaves a picture black, so that noise can be in it only if it came after.
    assert (augmented("crop:64,erase:1", white) > 0).any((1, 2, 3)).mean() > 0.9
    assert (augmented("erase:1,crop:64", white) > 0).any((1, 2, 3)).mean() < 0.1


@pytest.mark.parametrize(
    "spec, mend",
    [
        ("crp:4", "Did you mean crop:P?"),
        ("flip,randaugment:2:9", "Did you mean rand:N:M?"),
        ("mixup", "Words: crop:P, flip, jitter:S, erase:P, rand:N:M."),
        ("crop:4,", "Words:"),
        ("crop", "Write crop:P, a whole number from 0 to 64."),
        ("crop:4.5", "a whole number"),
        ("crop:65", "from 0 to 64"),
        ("flip:0.5", "Write flip."),
        ("jitter:2.1", "a number from 0 to 2"),
        ("erase:nan", "a number from 0 to 1"),
        ("rand:2", "Write rand:N:M, a whole number from 1 to 10 and a number from 0 to 10."),
        ("rand:2:10.5", "from 0 to 10"),
    ],
)
def test_a_bad_spec_is_refused_with_what_to_write(spec, mend):
    with pytest.raises(UserError) as caught:
        Augmentation(spec, 0)
    assert caught.value.field == "config.data.augment"
    assert repr(spec.split(",")[-1]) in caught.value.value and mend in caught.value.mend


def test_other_arrays_than_pictures_are_refused():
    for wrong in (np.zeros((2, 4, 4, 1), np.float32), np.zeros((4, 4, 1), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            augmented("flip", wrong)


def test_what_a_seed_gives_never_changes_between_versions():
    # A resumed run must see the pictures that the run before it would have seen.
    pixels = (np.arange(16 * 12 * 12 * 3) * 37 % 251).astype(np.uint8).reshape(16, 12, 12, 3)
    assert zlib.crc32(augmented(EVERYTHING, pixels, seed=11, epoch=2).tobytes()) == 2174397200
