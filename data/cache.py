"""The cache folder: results that are slow to make and safe to delete, each filed under a fingerprint of its inputs."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from errors import UserError


def cache_root() -> Path:
    """`$ROOTSTOCK_CACHE`, by default `~/.cache/rootstock`."""
    return Path(os.path.expanduser(os.environ.get("ROOTSTOCK_CACHE") or "~/.cache/rootstock")).resolve()


def fingerprint(*parts: str | bytes | int) -> str:
    """A short stable hash of the parts, the same on every machine and Python version."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        encoded = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def cached_folder(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `$ROOTSTOCK_CACHE/kind/key`, made by `build(folder)` when it is not there yet.

    `build` fills a temporary folder that is renamed into place when it is done, so that a folder which has its final
    name is whole, also after a crash and also when two processes build it at once.
    """
    target = cache_root() / kind / key
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    except OSError as error:
        raise UserError(
            "$ROOTSTOCK_CACHE", f"{target.parent} ({error.strerror})", "Set it to a folder that can be written."
        ) from error
    try:
        build(scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster: its folder has the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
