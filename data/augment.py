"""Augmentation of pictures, vectorised over a batch.

Every draw is a hash of (seed, epoch, row number, word, position), as in `data/masking.py`. So a picture is altered anew
in each epoch, and the same whatever batch, thread, worker or host it is made on. What Pillow can do comes out exactly
as Pillow's; pictures that drew operations of one kind are handled together.
"""

import difflib
import functools
import math
from collections.abc import Callable

import numpy as np

from data.masking import uniform
from errors import UserError

FIELD = "config.data.augment"
STREAM = 16  # of the hash, for the first word: the smaller ones are taken by the masks and windows of text
ERASE_SHARE, ERASE_ASPECT = (0.02, 0.33), (0.3, 1 / 0.3)  # Zhong et al. 2017; as in torchvision not 0.4 of the area
ROTATE, SHEAR, TRANSLATE, ENHANCE = 30, 0.3, 0.45, 0.9  # at magnitude 10: degrees, slope, share of the side, change
LEVELS, BLACK, EACH = np.arange(256), np.zeros(256), slice(None)
Draw = Callable[..., np.ndarray]


class Augmentation:
    """Alters pictures as a spec such as `crop:4,flip,jitter:0.4,erase:0.25,rand:2:9` says, in the order written.

    - `crop:P`: P pixels of zeros on each side, then back to the size at a random place (He et al. 2015, section 4.2).
    - `flip`: left and right are swapped with probability 1/2.
    - `jitter:S`: brightness, contrast and, of 3 channels, saturation, in this order, each by a factor that is uniform
      in [max(0, 1 - S), 1 + S].
    - `erase:P`: with probability P noise in a box of 2–33 % of the picture, 0.3–3.3 times as high as wide (Zhong et al.
      2017, arXiv:1708.04896). One that is longer than the picture is cut, where their algorithm draws again.
    - `rand:N:M`: RandAugment (Cubuk et al. 2019, arXiv:1909.13719), N operations of magnitude M: `apply_operations`.

    Args:
        spec: the words; "" alters nothing.
        seed: what the draws depend on beside epoch and row.

    Raises:
        UserError: a word is unknown, or its numbers are not what it takes.
    """

    def __init__(self, spec: str, seed: int):
        self.seed = seed
        self._steps = [_parse(word.strip()) for word in spec.split(",")] if spec.strip() else []

    def __call__(self, pixels: np.ndarray, rows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """What a picture becomes depends on itself and (seed, epoch, row), never on the others in the batch.

        Args:
            pixels: uint8 [batch, height, width, channels]; only read, and returned themselves if there are no words.
            rows, epochs: integers [batch].
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise ValueError(f"pictures are uint8 [batch, height, width, channels], not {pixels.dtype} {pixels.shape}")

        def draw(place: int, count: int, part: int = 0, chosen: slice | np.ndarray = EACH) -> np.ndarray:
            """[batch or chosen, count] numbers in [0, 1), for a word and one of two uses in it."""
            return uniform(self.seed, epochs[chosen], rows[chosen], STREAM + 2 * place + part, count)

        for place, (step, numbers) in enumerate(self._steps):
            pixels = step(np.asarray(pixels), functools.partial(draw, place), *numbers)
        return pixels


def apply_operations(pixels: np.ndarray, operations: np.ndarray, signs: np.ndarray, magnitude: float) -> np.ndarray:
    """One operation of RandAugment for each picture.

    Magnitude 10 rotates by 30° about the middle, shears by 0.3 from the upper left corner, moves by 0.45 of the side in
    whole pixels, enhances by 1 ± 0.9, keeps 4 bits and inverts all levels; a smaller one does less in proportion. Moved
    pixels have the nearest old one's value, from outside 0. Without 3 channels `color` does nothing.

    Args:
        pixels: uint8 [batch, height, width, channels].
        operations: indices into `OPERATIONS` [batch].
        signs: +1 or -1 [batch], for the operations that have a direction.
        magnitude: 0 to 10.
    """
    out = pixels.copy()
    for kind, names in KINDS.items():
        chosen = np.flatnonzero(np.isin(operations, [OPERATIONS.index(name) for name in names]))
        if chosen.size:
            out[chosen] = kind(pixels[chosen], operations[chosen], signs[chosen] * magnitude / 10)
    return out


# ---- the words


def _crop(pixels: np.ndarray, draw: Draw, pad: int) -> np.ndarray:
    batch, height, width, channels = pixels.shape
    padded = np.zeros((batch, height + 2 * pad, width + 2 * pad, channels), np.uint8)
    padded[:, pad : pad + height, pad : pad + width] = pixels
    top, left = (draw(2) * (2 * pad + 1)).astype(int).T
    # Pixels and channels as one axis, so that whole lines are copied.
    lines = padded.reshape(batch, height + 2 * pad, (width + 2 * pad) * channels)
    windows = np.lib.stride_tricks.sliding_window_view(lines, (height, width * channels), axis=(1, 2))
    return windows[np.arange(batch), top, left * channels].reshape(pixels.shape)


def _flip(pixels: np.ndarray, draw: Draw) -> np.ndarray:
    chosen = np.flatnonzero(draw(1)[:, 0] < 0.5)
    out = pixels.copy()
    out[chosen] = pixels[chosen][:, :, ::-1]
    return out


def _jitter(pixels: np.ndarray, draw: Draw, strength: float) -> np.ndarray:
    lowest = max(0.0, 1 - strength)
    brightness, contrast, saturation = (lowest + (1 + strength - lowest) * draw(3)).T
    pixels = _look_up(pixels, _mix(BLACK, LEVELS, brightness[:, None, None]))
    return _saturate(_look_up(pixels, _contrast_table(pixels, contrast)), saturation)


def _erase(pixels: np.ndarray, draw: Draw, probability: float) -> np.ndarray:
    sides = np.array(pixels.shape[1:3])[:, None]
    numbers = draw(5)
    chosen = np.flatnonzero(numbers[:, 0] < probability)
    area = math.prod(pixels.shape[1:3]) * np.interp(numbers[chosen, 1], (0, 1), ERASE_SHARE)
    aspect = np.interp(numbers[chosen, 2], (0, 1), ERASE_ASPECT)
    lengths = np.clip(np.rint(np.sqrt([area * aspect, area / aspect])), 1, sides)  # [2, chosen]: height, width
    starts = np.floor(numbers[chosen, 3:].T * (sides - lengths + 1))
    in_lines, in_columns = (
        (np.arange(side) >= start[:, None]) & (np.arange(side) < (start + length)[:, None])
        for side, start, length in zip(sides[:, 0], starts, lengths, strict=True)
    )
    size = math.prod(pixels.shape[1:])
    four_bytes = (draw(-(-size // 4), part=1, chosen=chosen) * 2.0**32).astype("<u4")
    noise = four_bytes.view(np.uint8)[:, :size].reshape(-1, *pixels.shape[1:])
    out = pixels.copy()
    out[chosen] = np.where(in_lines[:, :, None, None] & in_columns[:, None, :, None], noise, out[chosen])
    return out


def _rand(pixels: np.ndarray, draw: Draw, count: int, magnitude: float) -> np.ndarray:
    numbers = draw(2 * count)
    operations = (numbers[:, :count] * len(OPERATIONS)).astype(int)
    signs = np.where(numbers[:, count:] < 0.5, 1, -1)
    for turn in range(count):
        pixels = apply_operations(pixels, operations[:, turn], signs[:, turn], magnitude)
    return pixels


# ---- RandAugment's operations by kind: (pixels, operations, ± magnitude / 10) -> pixels


def _by_table(pixels: np.ndarray, operations: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Those in which a level's new value does not depend on where it is: one table for each channel."""
    tables = np.empty((len(pixels), pixels.shape[3], 256), np.uint8)
    for name, make in TABLES.items():
        chosen = np.flatnonzero(operations == OPERATIONS.index(name))
        if chosen.size:
            tables[chosen] = make(pixels[chosen], amounts[chosen])
    return _look_up(pixels, tables)


def _autocontrast_table(pixels: np.ndarray, _: np.ndarray) -> np.ndarray:
    """From a channel's darkest level to 0 and its lightest to 255: [batch, channels, 256]."""
    low, high = (edge.astype(float)[:, :, None] for edge in (pixels.min((1, 2)), pixels.max((1, 2))))
    scale = 255 / np.maximum(high - low, 1)
    return np.where(high > low, np.clip(LEVELS * scale - low * scale, 0, 255), LEVELS)


def _equalize_table(pixels: np.ndarray, _: np.ndarray) -> np.ndarray:
    """To levels that are about equally frequent: [batch, channels, 256]. A channel of few pixels stays as it is."""
    batch, height, width, channels = pixels.shape
    counts = np.bincount(_entries(pixels, channels).ravel(), minlength=batch * channels * 256)
    histogram = counts.reshape(batch, channels, 256)
    lightest = pixels.max((1, 2)).astype(int)[:, :, None]
    step = (height * width - np.take_along_axis(histogram, lightest, 2)) // 255
    below = np.cumsum(histogram, axis=2) - histogram
    return np.where(step > 0, np.minimum((step // 2 + below) // np.maximum(step, 1), 255), LEVELS)


def _contrast_table(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    grey = _grey(pixels) if pixels.shape[3] == 3 else pixels
    count = math.prod(grey.shape[1:])
    mean = (2 * grey.reshape(len(pixels), count).sum(1, dtype=np.int64) + count) // (2 * count)  # half goes up
    return _mix(mean[:, None, None], LEVELS, factors[:, None, None])


def _affine(pixels: np.ndarray, operations: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Those that move pixels: new (x, y) gets what was at (a x + b y + c, d x + e y + f)."""
    batch, height, width, channels = pixels.shape
    x_middle, y_middle = width / 2, height / 2

    def amount(name: str, most: float) -> np.ndarray:
        return np.where(operations == OPERATIONS.index(name), most * amounts, 0.0)

    angle = -np.deg2rad(amount("rotate", ROTATE))
    a = e = np.cos(angle)
    b, d = np.sin(angle), -np.sin(angle)
    c = a * -x_middle + b * -y_middle + x_middle + np.rint(amount("translate_x", TRANSLATE * width))
    f = d * -x_middle + e * -y_middle + y_middle + np.rint(amount("translate_y", TRANSLATE * height))
    b += amount("shear_x", SHEAR)
    d += amount("shear_y", SHEAR)

    def old(by_x: np.ndarray, by_y: np.ndarray, start: np.ndarray) -> np.ndarray:
        """[batch, height, width] coordinates of where a pixel's middle was; with 16 bits of fraction, as in Pillow."""
        parts = (by_x, by_y, start + by_x * 0.5 + by_y * 0.5)
        by_x, by_y, first = (np.floor(part * 65536 + 0.5).astype(np.int32)[:, None, None] for part in parts)
        y, x = np.ogrid[:height, :width]
        return (first + by_x * x.astype(np.int32) + by_y * y.astype(np.int32)) >> 16

    x, y = old(a, b, c), old(d, e, f)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    places = np.where(is_inside, y * width + x, 0) + np.arange(batch)[:, None, None] * (height * width)
    moved = pixels.reshape(-1, channels).take(places, axis=0)
    moved[~is_inside] = 0
    return moved


def _sharpness(pixels: np.ndarray, _: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """The picture smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, but for its outermost pixels, and the picture, mixed."""
    wide = pixels.astype(np.uint16)
    sums = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    smooth = pixels.copy()
    smooth[:, 1:-1, 1:-1] = (2 * sums + 13) // 26  # rounded; no sum is halfway
    return _mix(smooth, pixels, 1 + ENHANCE * amounts[:, None, None, None])


def _grey(pixels: np.ndarray) -> np.ndarray:
    """[…, 3] -> uint8 […], by the weights of ITU-R BT.601 in 16 bits."""
    red, green, blue = np.moveaxis(pixels, -1, 0).astype(np.int32)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).astype(np.uint8)


def _saturate(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    if pixels.shape[3] != 3:
        return pixels
    return _mix(_grey(pixels)[..., None].repeat(3, axis=3), pixels, factors[:, None, None, None])


def _mix(first: np.ndarray, second: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """first + factor × (second - first), cut to 0–255 and to whole numbers, in single precision as in Pillow."""
    start = first.astype(np.float32)
    return np.clip(start + factors.astype(np.float32) * (second.astype(np.float32) - start), 0, 255).astype(np.uint8)


def _look_up(pixels: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Each value's entry in uint8 tables [batch, channels or 1, 256]."""
    return tables.ravel().take(_entries(pixels, tables.shape[1])).reshape(pixels.shape)


def _entries(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Where they are in the flattened tables: [batch, height, width × channels]."""
    begin = 256 * np.arange(len(pixels) * channels).reshape(len(pixels), 1, channels)
    lines = pixels.reshape(*pixels.shape[:2], math.prod(pixels.shape[2:]))
    return lines + (np.tile(begin, (1, 1, pixels.shape[2])) if channels > 1 else begin)


# (pixels, ± magnitude / 10) -> levels [batch, channels or 1, 256], or fewer axes
TABLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "autocontrast": _autocontrast_table,
    "equalize": _equalize_table,
    "posterize": lambda _, amount: LEVELS & (256 - 2 ** round(4 * abs(amount[0]))),
    "solarize": lambda _, amount: np.where(256 * (1 - abs(amount[0])) > LEVELS, LEVELS, 255 - LEVELS),
    "brightness": lambda _, amount: _mix(BLACK, LEVELS, 1 + ENHANCE * amount[:, None, None]),
    "contrast": lambda pixels, amount: _contrast_table(pixels, 1 + ENHANCE * amount),
}
# (pixels, operations, ± magnitude / 10) -> pixels
KINDS: dict[Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], tuple[str, ...]] = {
    _by_table: tuple(TABLES),
    _affine: ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    _sharpness: ("sharpness",),
    lambda pixels, _, amount: _saturate(pixels, 1 + ENHANCE * amount): ("color",),
}
OPERATIONS = ("identity", *(name for names in KINDS.values() for name in names))  # the paper's fourteen

# Each word's step, how it is written, and its numbers: kind, least, most.
WORDS: dict[str, tuple[Callable[..., np.ndarray], str, tuple[tuple[type, int, int], ...]]] = {
    "crop": (_crop, "crop:P", ((int, 0, 64),)),
    "flip": (_flip, "flip", ()),
    "jitter": (_jitter, "jitter:S", ((float, 0, 2),)),
    "erase": (_erase, "erase:P", ((float, 0, 1),)),
    "rand": (_rand, "rand:N:M", ((int, 1, 10), (float, 0, 10))),
}


def _parse(word: str) -> tuple[Callable[..., np.ndarray], list[float]]:
    """A word's step and its numbers."""
    name, *texts = word.split(":")
    if name not in WORDS:
        near = difflib.get_close_matches(name, WORDS, n=1, cutoff=0.5)
        hint = f"Did you mean {WORDS[near[0]][1]}? " if near else ""
        words = ", ".join(usage for _, usage, _ in WORDS.values())
        raise UserError(FIELD, f"{word!r} is no augmentation", f"{hint}Words: {words}.")
    step, usage, ranges = WORDS[name]
    try:
        numbers = [kind(text) for text, (kind, _, _) in zip(texts, ranges, strict=True)]
        if not all(least <= number <= most for number, (_, least, most) in zip(numbers, ranges, strict=True)):
            raise ValueError
    except ValueError as error:
        wanted = [f"a {'whole ' * (kind is int)}number from {least} to {most}" for kind, least, most in ranges]
        raise UserError(FIELD, repr(word), f"Write {usage}{', ' * bool(wanted)}{' and '.join(wanted)}.") from error
    return step, numbers
