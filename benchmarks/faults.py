"""What a run survives: killed at any time, its checkpoints damaged, stopped by a signal, its disk full, wrong input.

    python -m benchmarks.faults [--kills=20] [--corruptions=50] [--malformed=0] [--seed=0] [--long]

Small runs of every kind of task, in processes of their own. Every kill is a SIGKILL, at least a quarter of them while a
checkpoint is being written; in the end a run has been killed several times, and its parameters must be those, to the
bit, of one that was not. Damage is a flipped bit, a cut or a missing file, in the newest of several checkpoints: it
must be found, and the one before be used. `malformed` is how many mistakes of benchmarks/malformed.py are made, 0 for
all. `long` is 200 kills and 1,000 damages. One line a fault, then a table and a JSON object.
"""

import hashlib
import itertools
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
from benchmarks import malformed
from cli import commandline
from training.checkpoints import SAVING, Checkpoints

FLAGS: dict[str, Any] = {"kills": 20, "corruptions": 50, "malformed": 0, "seed": 0, "long": False}
LONG = {"kills": 200, "corruptions": 1000}
ROOT = Path(__file__).parent.parent
STEPS, EVERY = 400, 20  # of a run, and from one checkpoint to the next
KILLS_A_RUN = 5
PATIENCE = 120  # seconds that a process may take
WORDS = "the a king queen river ship letter horse sees finds remembers follows old small green far".split()


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    flags |= LONG if flags["long"] else {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), random.Random(flags["seed"]))
        result = {
            "kills": bench.kills(flags["kills"]),
            "corruptions": bench.corruptions(flags["corruptions"]),
            "signals": bench.signals(),
            "full_disk": bench.full_disk(),
        }
    verdicts = malformed.try_all(limit=flags["malformed"])
    result["malformed"] = {"survived": sum(verdicts), "of": len(verdicts)}
    print("\n| fault | survived | of | |\n|---|---|---|---|")
    for name, part in result.items():
        about = ", ".join(f"{key} {value}" for key, value in part.items() if key not in ("survived", "of"))
        print(f"| {name.replace('_', ' ')} | {part['survived']} | {part['of']} | {about.replace('_', ' ')} |")
    minutes = round((time.perf_counter() - started) / 60, 1)
    print(json.dumps({"benchmark": "faults", **flags, **result, "minutes": minutes}))
    return 0 if all(part["survived"] == part["of"] for part in result.values()) else 1


class _Bench:
    def __init__(self, folder: Path, chance: random.Random):
        self.folder, self.chance = folder, chance
        lines = [" ".join(chance.choices(WORDS, k=chance.randint(6, 20))) for _ in range(400)]
        (folder / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
        labelled = "\n".join(f"{line},{'king' in line}" for line in lines)
        (folder / "labelled.csv").write_text(f"text,label\n{labelled}\n", encoding="utf-8")
        (folder / "pairs.en").write_text("\n".join(lines), encoding="utf-8")
        (folder / "pairs.zh").write_text("\n".join(line[::-1] for line in lines), encoding="utf-8")
        text, wordpiece = f"--config.data.train=text:{folder}/words.txt", "--config.data.tokenizer=wordpiece:128"
        pairs = f"--config.data.train=parallel:{folder}/pairs.zh,{folder}/pairs.en"
        table = f"--config.data.train=csv:{folder}/labelled.csv"
        self.words = {
            "mlm": ["bert_mlm", text, wordpiece],
            "fine-tuning": ["bert_classify", table, f"--config.init_from={folder}/whole-mlm"],
            "translation": ["transformer_mt", pairs],
            "gpt": ["gpt_lm", text],
            "pictures": ["vit_classify", "--config.train.batch_size=16"],
        }
        self.wholes: dict[str, str] = {}
        self.whole("mlm")  # which the corruptions are done to, and fine-tuning begins with

    def whole(self, task: str) -> str:
        """The digest of the parameters of a run that nothing happens to."""
        if task not in self.wholes:
            workdir, started = self.folder / f"whole-{task}", time.perf_counter()
            assert self.start(task, workdir).wait(PATIENCE) == 0, f"the run of {task} that nothing happens to failed"
            self.wholes[task] = digest(workdir)
            print(f"{task}: {time.perf_counter() - started:.1f} s", flush=True)
        return self.wholes[task]

    def start(self, task: str, workdir: Path, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
        """The run as a process, started by the words `before`; the same command goes on with it."""
        config, *own = self.words[task]
        fixed = ["train.py", f"--config=configs/{config}.py:smoke", f"--workdir={workdir}", *own]
        numbers = {"steps": STEPS, "log_every": 5, "checkpoint_every": EVERY, "eval_every": 100, "keep": 3}
        fixed += [f"--config.train.{name}={value}" for name, value in numbers.items()]
        given = [word for word in fixed if word.split("=")[0] not in {w.split("=")[0] for w in words}]
        return subprocess.Popen(
            [sys.executable, *before, *given, *words],
            cwd=ROOT, env={**os.environ, "ROOTSTOCK_CACHE": str(self.folder / "cache")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def kills(self, count: int) -> dict[str, Any]:
        """Runs of all tasks in turn that are killed several times each, and then run to their end."""
        survived, in_saves, number, by_task = 0, 0, 0, dict.fromkeys(self.words, 0)
        turns = itertools.cycle(self.words)
        while number < count:
            task, kills = next(turns), 0
            expected = self.whole(task)
            workdir = self.folder / f"killed-{number}"
            while kills < min(KILLS_A_RUN, count - number):
                process = self.start(task, workdir)
                landed = self._kill(process, workdir, in_save=(number + kills) % 2 == 0)
                if process.returncode != -signal.SIGKILL:  # too late: it had ended
                    break
                kills += 1
                in_saves += landed
                place = "in a save" if landed else "anywhere"
                print(f"kill {number + kills}: {task}, {place}, {steps_of(workdir)}", flush=True)
            status = self.start(task, workdir).wait(PATIENCE)
            same = status == 0 and digest(workdir) == expected
            number += kills
            survived += kills * same
            by_task[task] += kills * same
            print(f"run of {kills} kills: status {status}, parameters {'the same' if same else 'OTHERS'}", flush=True)
            shutil.rmtree(workdir)
        return {"survived": survived, "of": count, "in_saves": in_saves, **by_task}

    def _kill(self, process: subprocess.Popen, workdir: Path, in_save: bool) -> bool:
        """Kills while a checkpoint is being written or, as chance wants, anywhere; whether it was the former."""
        folder, early = workdir / "checkpoints", not in_save and self.chance.random() < 0.2
        begun, latest = time.perf_counter(), self.chance.uniform(0, 3)  # seconds, if it is to be at the start
        save = self.chance.randrange(1, 4)  # which save of this start it is to be at
        seen: set[str] = set()
        while process.poll() is None:
            saving = list(folder.glob(f"*{SAVING}"))
            seen |= {path.name for path in saving}
            if early and time.perf_counter() - begun > latest:
                break
            if not early and len(seen) >= save and (saving or not in_save):
                time.sleep(self.chance.uniform(0, 0.002 if in_save else 0.5))
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        return any(folder.glob(f"*{SAVING}"))  # what it left half made says so

    def corruptions(self, count: int) -> dict[str, Any]:
        """Damage to the newest of the whole run's checkpoints."""
        survived = 0
        whole = self.folder / "whole-mlm"
        original = Checkpoints(whole / "checkpoints").steps()
        for number in range(count):
            copy = self.folder / "damaged"
            shutil.copytree(whole, copy)
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
            process = self.start("mlm", workdir)
            while process.poll() is None and not Checkpoints(workdir / "checkpoints").steps():
                time.sleep(0.005)
            sent = time.perf_counter()
            process.send_signal(number)
            status = process.wait(PATIENCE)
            seconds.append(round(time.perf_counter() - sent, 2))
            goes_on = self.start("mlm", workdir).wait(PATIENCE) == 0 and digest(workdir) == self.whole("mlm")
            survived += status == expected and goes_on
            print(f"{number.name}: status {status} after {seconds[-1]} s, {'the same' if goes_on else 'OTHERS'}")
        return {"survived": survived, "of": 2, "seconds": seconds}

    def full_disk(self) -> dict[str, Any]:
        """No file may grow beyond a few KiB: the save fails, it is told, and what was saved before is whole."""
        workdir = self.folder / "full"
        assert self.start("mlm", workdir, "--config.train.steps=20", "--config.train.eval_every=20").wait(PATIENCE) == 0

        limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))"
        limited += "; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        process = self.start("mlm", workdir, before=("-c", limited))
        told = process.communicate(timeout=PATIENCE)[1].strip().splitlines()
        whole = Checkpoints(workdir / "checkpoints").newest_whole(lambda line: None)
        goes_on = (
            self.start("mlm", workdir).wait(PATIENCE) == 0
        )  # for more steps, and so at other rates than the whole run
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
