"""A run's folder: whose it is, and what stands in config.json and run.json."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli.config import differences
from errors import UserError
from tasks import read_config

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers", "sentencepiece")

OWN = LOCK, WRITABLE = ".lock", ".writable"  # what a process that was killed at its start may have left


def check_place(workdir: Path) -> None:
    """Raises UserError if the folder cannot be written or holds something else than a run. Writes nothing."""
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "no permission" if existing.is_dir() else f"{existing} is a file"
        raise UserError("--workdir", f"{workdir} cannot be written ({reason})", "Give another folder.")
    held = existing == workdir and any(path.name not in OWN for path in workdir.iterdir())
    if held and not (workdir / "config.json").is_file():
        raise UserError(str(workdir), "is not empty and holds no run", "Give another --workdir.")


def check_experiment(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the folder holds a run of another experiment; `config` is resolved. Writes nothing."""
    if not (workdir / "config.json").is_file():
        return
    differing = differences(read_config(workdir), config)
    if differing:
        shown = "; ".join(differing[:6]) + ("; …" if len(differing) > 6 else "")
        mend = "Give another --workdir, or the values that the run was started with."
        raise UserError(str(workdir), f"holds another experiment: {shown}", mend)


def check_fingerprints(workdir: Path, fingerprints: dict[str, str]) -> None:
    """Raises UserError if the run was started with other data, or another tokenizer, than these. Writes nothing."""
    before = _about(workdir).get("fingerprints", {})
    other = [name for name, now in fingerprints.items() if before.get(name, now) != now]
    if other:
        value = f"was started with other contents of {', '.join(other)} than there are now"
        raise UserError(str(workdir), value, "Bring them back as they were, or give another --workdir.")


class Lock:
    """Keeps a second process from training in the same folder; the kernel lets go of it when the process ends.

    A context manager. `acquire` does nothing where there is no folder yet, and nothing the second time.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK
        self._stream: Any = None

    def acquire(self) -> None:
        """Raises UserError if another process holds it, on this host or, where the file system tells, on another."""
        if self._stream is not None or not self._path.parent.is_dir():
            return
        stream = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            mend = "Wait until it has ended, or give another --workdir."
            raise UserError("--workdir", f"{self._path.parent} is being trained in by {holder}", mend) from error
        except OSError:  # a file system without locks
            stream.close()
            return
        stream.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        stream.write(f"process {os.getpid()} on {platform.node()} since {since}\n")
        stream.flush()
        self._stream = stream

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._stream is not None:
            self._stream.truncate(0)
            self._stream.close()
            self._stream = None


def create(workdir: Path) -> None:
    """Makes the folder, or raises UserError: a disk that cannot be written shows only now."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / WRITABLE
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            "--workdir", f"{workdir} cannot be written ({error.strerror})", "Give another folder."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one move, so that no reader ever sees half of it."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


def describe_start(workdir: Path, step: int, facts: dict[str, Any]) -> dict[str, Any]:
    """What run.json says: of this start in full, of the earlier ones their time and step."""
    starts = _about(workdir).get("starts", [])
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return {
        "command": sys.argv,
        "versions": versions,
        "git_commit": _git_commit(),
        **facts,
        "starts": [*starts, {"time": now, "step": step}],
    }


def _about(workdir: Path) -> dict[str, Any]:
    """What run.json said so far; nothing if there is none, or none that can be read: it is told, not gone by."""
    try:
        about = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
