"""What pictures are normalised by, in Hugging Face's preprocessor_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.labels import LARGEST
from errors import UserError

FILE = "preprocessor_config.json"
Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel, from 0 to 1


def read_normalization(
    about: Mapping[str, Any], path: Path, default: Normalization, channels: int, field: str
) -> Normalization:
    """Mean and deviation of each channel. How pictures are brought to their size is not read: that is the data's.

    Args:
        about: the content of the file; empty if there is none.
        default: what the model's family is normalised by where the file is silent.

    Raises:
        UserError: pixels are brought to another range than 0 to 1, or there is no number for each channel.
    """
    factor = _said(about, "rescale_factor", 1 / 255)
    if _said(about, "do_rescale", True) is not True or not _is_number(factor) or abs(factor * 255 - 1) > 1e-4:
        option = "rescale_factor" if _said(about, "do_rescale", True) is True else "do_rescale"
        mend = "Choose a model whose pixels are multiplied by 1/255 and then normalised: no other is computed."
        raise UserError(field, f"{path}: {option} is {about[option]!r}", mend)
    normalize = _said(about, "do_normalize", True)
    if not isinstance(normalize, bool):
        raise UserError(field, f"{path}: do_normalize is {normalize!r}", "Mend it: true or false.")
    if not normalize:
        return (0.0,) * channels, (1.0,) * channels
    found = []
    for option, numbers in zip(("image_mean", "image_std"), default, strict=True):
        numbers = _said(about, option, numbers)
        fits = isinstance(numbers, list | tuple) and len(numbers) == channels and all(map(_is_number, numbers))
        if not fits or (option == "image_std" and min(numbers) <= 0):
            mend = f"Mend it: {channels} number(s){' above 0' * (option == 'image_std')}, one for each channel."
            raise UserError(field, f"{path}: {option} is {numbers!r}", mend)
        found.append(tuple(float(number) for number in numbers))
    return found[0], found[1]


def preprocessor(size: int, normalization: Normalization) -> dict[str, Any]:
    """The content of the file for a model of pictures of `size` × `size`."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalization[0]),
        "image_std": list(normalization[1]),
    }


def _said(about: Mapping[str, Any], option: str, default: Any) -> Any:
    """What the file says; null is silence."""
    return default if about.get(option) is None else about[option]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST  # what is not finite is not
