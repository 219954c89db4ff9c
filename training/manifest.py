"""Whether a folder is whole: a manifest with size and SHA-256 of every file, written last and checked before use."""

import hashlib
import json
import os
import stat
from pathlib import Path

NAME = "manifest.json"


def write(folder: Path) -> None:
    """Makes the manifest of all files below the folder, when they and it are on the disk and not in its cache."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != NAME:
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
            _flush(path)
    content = json.dumps({"files": files}, indent=1, sort_keys=True)
    target = folder / NAME
    target.write_text(f"{content}\n{_digest_of(content)}\n", encoding="utf-8")
    _flush(target)


def complaint(folder: Path) -> str:
    """What is wrong with the folder; empty if it is whole. Files beside those of the manifest are none of its."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        content, _, digest = text.removesuffix("\n").rpartition("\n")
        if digest != _digest_of(content) or not text.endswith("\n"):
            return f"{NAME} is damaged"
        files = [(name, about["size"], about["sha256"]) for name, about in json.loads(content)["files"].items()]
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{NAME} cannot be read ({error})"
    return next(filter(None, (_complaint(folder, *about) for about in files)), "")


def _complaint(folder: Path, name: str, size: object, digest: object) -> str:
    """What is wrong with one file."""
    shown = name if name.isprintable() else repr(name)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{shown} lies outside"
    path = folder / name
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # of a pipe no end might be read
            return f"{shown} is no file"
        if about.st_size != size:
            return f"{shown} has {about.st_size:,} bytes, not {size:,}" if type(size) is int else f"{shown} has no size"
        if _digest(path) != digest:
            return f"{shown} has other content than was saved"
    except FileNotFoundError:
        return f"{shown} is missing"
    except (OSError, ValueError) as error:  # a name may be none
        return f"{shown} cannot be read ({getattr(error, 'strerror', None) or error})"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
