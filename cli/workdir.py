"""A run's folder: whose it is, and what stands in config.json and run.json."""

import importlib.metadata
import json
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


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the folder holds another experiment, or cannot hold this one. Writes nothing."""
    if (workdir / "config.json").is_file():
        differing = differences(read_config(workdir), config)
        if differing:
            shown = "; ".join(differing[:6]) + ("; …" if len(differing) > 6 else "")
            mend = "Give another --workdir, or the values that the run was started with."
            raise UserError(str(workdir), f"holds another experiment: {shown}", mend)
    elif workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(str(workdir), "is not empty and holds no run", "Give another --workdir.")


def create(workdir: Path) -> None:
    """Makes the folder, or raises UserError if it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
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
    path = workdir / "run.json"
    starts = json.loads(path.read_text(encoding="utf-8")).get("starts", []) if path.is_file() else []
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


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
