"""What a run survives: killed at any time, its checkpoints damaged, stopped by a signal, its disk full.

    python -m benchmarks.faults [--kills=20] [--corruptions=50] [--seed=0]

Small pretraining runs in processes of their own. Every kill is a SIGKILL, at least a quarter of them while a checkpoint
is being written; in the end a run has been killed several times, and its parameters must be those, to the bit, of one
that was not. Damage is a flipped bit, a cut or a missing file, in the newest of several checkpoints: it must be found,
and the one before be used. One line a fault, and one JSON object at the end.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
import numpy as np

import tasks
from cli import commandline
from training.checkpoints import SAVING, Checkpoints

FLAGS: dict[str, Any] = {"kills": 20, "corruptions": 50, "seed": 0}
ROOT = Path(__file__).parent.parent
STEPS = 400
KILLS_A_RUN = 5
PATIENCE = 120  # seconds that a process may take


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    chance = random.Random(flags["seed"])
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), chance)
        result = {
            "kills": bench.kills(flags["kills"]),
            "corruptions": bench.corruptions(flags["corruptions"]),
            "signals": bench.signals(),
            "full_disk": bench.full_disk(),
        }
    print(json.dumps({"benchmark": "faults", **flags, **result}))
    return 0 if all(part["survived"] == part["of"] for part in result.values()) else 1


class _Bench:
    def __init__(self, folder: Path, chance: random.Random):
        self.folder, self.chance = folder, chance
        words = "the a king queen river ship letter horse sees finds remembers follows old small green far".split()
        lines = [" ".join(chance.choices(words, k=chance.randint(6, 20))) for _ in range(400)]
        (folder / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
        self.whole = folder / "whole"
        started = time.perf_counter()
        assert self.start(self.whole).wait(PATIENCE) == 0, "the run that nothing happens to failed"
        self.seconds = time.perf_counter() - started
        self.digest = digest(self.whole)

    def start(self, workdir: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
        """The run as a process, started by the words `before`; the same command goes on with it."""
        fixed = ["train.py", "--config=configs/bert_mlm.py:smoke", f"--workdir={workdir}"]
        fixed += [f"--config.data.train=text:{self.folder / 'words.txt'}", "--config.data.tokenizer=wordpiece:128"]
        fixed += [f"--config.train.{name}=5" for name in ("log_every", "checkpoint_every")]
        fixed += [f"--config.train.steps={STEPS}", "--config.train.eval_every=100", "--config.train.keep=3"]
        given = [word for word in fixed if word.split("=")[0] not in {w.split("=")[0] for w in words}]
        return subprocess.Popen(
            [sys.executable, *before, *given, *words],
            cwd=ROOT, env={**os.environ, "ROOTSTOCK_CACHE": str(self.folder / "cache")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def kills(self, count: int) -> dict[str, Any]:
        """Runs that are killed several times each, and then run to their end."""
        survived, in_saves, number = 0, 0, 0
        while number < count:
            workdir = self.folder / f"killed-{number}"
            here = min(KILLS_A_RUN, count - number)
            for _ in range(here):
                process, in_save = self.start(workdir), number % 2 == 0
                landed = self._kill(process, workdir, in_save)
                in_saves += landed
                number += 1
                print(f"kill {number}: {'in a save' if landed else 'anywhere'}, {steps_of(workdir)}", flush=True)
            status = self.start(workdir).wait(PATIENCE)
            same = status == 0 and digest(workdir) == self.digest
            survived += here * same
            print(f"run of {here} kills: status {status}, parameters {'the same' if same else 'OTHERS'}", flush=True)
            shutil.rmtree(workdir)
        return {"survived": survived, "of": count, "in_saves": in_saves}

    def _kill(self, process: subprocess.Popen, workdir: Path, in_save: bool) -> bool:
        """Kills at some time in the run, or while a checkpoint is being written; whether it was the latter."""
        deadline = time.perf_counter() + self.chance.uniform(0.3, 0.5) * self.seconds
        landed, chosen = False, self.chance.randrange(1, 12)  # which save of this start it is to be
        seen: set[str] = set()
        while process.poll() is None:
            saving = list((workdir / "checkpoints").glob(f"*{SAVING}"))
            seen |= {path.name for path in saving}
            if saving and in_save and len(seen) >= chosen:
                time.sleep(self.chance.uniform(0, 0.002))
                break
            if time.perf_counter() > deadline and not in_save:
                landed = bool(saving)
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        return landed or bool(list((workdir / "checkpoints").glob(f"*{SAVING}")))  # what it left half made says so

    def corruptions(self, count: int) -> dict[str, Any]:
        """Damage to the newest of the whole run's checkpoints."""
        survived = 0
        original = Checkpoints(self.whole / "checkpoints").steps()
        for number in range(count):
            copy = self.folder / "damaged"
            shutil.copytree(self.whole, copy)
            how, name = self._damage(copy / "checkpoints" / str(original[-1]))
            told: list[str] = []
            found = Checkpoints(copy / "checkpoints").newest_whole(told.append, set_aside=True)
            good = found == original[-2] and len(told) == 1
            survived += good
            print(f"damage {number + 1}: {how} {name}: {told[0] if told else 'NOT FOUND'}", flush=True)
            shutil.rmtree(copy)
        return {"survived": survived, "of": count}

    def _damage(self, checkpoint: Path) -> tuple[str, str]:
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
        path = self.chance.choice(files)
        how = self.chance.choice(("a bit flipped in", "cut", "removed"))
        content = bytearray(path.read_bytes())
        if how == "removed":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: self.chance.randrange(len(content))])
        else:
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            path.write_bytes(content)
        return how, str(path.relative_to(checkpoint))

    def signals(self) -> dict[str, Any]:
        """SIGTERM and Ctrl-C: how long until the run has saved and ended, and whether it ends as one that was not."""
        survived, seconds = 0, []
        for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            workdir = self.folder / f"signal-{expected}"
            process = self.start(workdir)
            while process.poll() is None and not Checkpoints(workdir / "checkpoints").steps():
                time.sleep(0.005)
            sent = time.perf_counter()
            process.send_signal(number)
            status = process.wait(PATIENCE)
            seconds.append(round(time.perf_counter() - sent, 2))
            goes_on = self.start(workdir).wait(PATIENCE) == 0 and digest(workdir) == self.digest
            survived += status == expected and goes_on
            print(f"{number.name}: status {status} after {seconds[-1]} s, {'the same' if goes_on else 'OTHERS'}")
        return {"survived": survived, "of": 2, "seconds": seconds}

    def full_disk(self) -> dict[str, Any]:
        """No file may grow beyond a few KiB: the save fails, it is told, and what was saved before is whole."""
        workdir = self.folder / "full"
        assert self.start(workdir, "--config.train.steps=20", "--config.train.eval_every=20").wait(PATIENCE) == 0

        limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))"
        limited += "; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        process = self.start(workdir, before=("-c", limited))
        told = process.communicate(timeout=PATIENCE)[1].strip().splitlines()
        whole = Checkpoints(workdir / "checkpoints").newest_whole(lambda line: None)
        goes_on = self.start(workdir).wait(PATIENCE) == 0  # for more steps, and so at other rates than the whole run
        # The libraries' own threads complain before and behind it.
        said = " / ".join(line for line in told if "cannot be written" in line or "goes on from" in line)
        good = process.returncode == 2 and "cannot be written" in said and whole == 20 and goes_on
        print(f"full disk: status {process.returncode}, {said}", flush=True)
        return {"survived": int(good), "of": 1}


def digest(workdir: Path) -> str:
    """SHA-256 of the parameters of a run's last checkpoint."""
    _, params, _ = tasks.restore_params(workdir, "last", lambda line: None)
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def steps_of(workdir: Path) -> str:
    steps = Checkpoints(workdir / "checkpoints").steps()
    return f"checkpoints of {', '.join(map(str, steps))}" if steps else "no checkpoint"


if __name__ == "__main__":
    commandline.run(main)
