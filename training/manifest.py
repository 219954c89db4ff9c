"""Whether a folder is whole: a manifest with size and SHA-256 of every file, written last and checked before use."""

import hashlib
import json
import os
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
        files = json.loads(content)["files"]
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, KeyError) as error:
        return f"{NAME} cannot be read ({error})"
    for name, about in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != about["size"]:
                return f"{name} has {size:,} bytes, not {about['size']:,}"
            if _digest(path) != about["sha256"]:
                return f"{name} has other content than was saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
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
