"""Checkpoints through orbax: asynchronous, whole or absent, and known to be what was saved. The only room that knows
orbax.

One is a folder `DIR/checkpoints/STEP`: `state`, plain nested dicts of arrays; `position.json`, which says where the run
stands: in its data, and which of its evaluations was the best; and the manifest of both. It is made under another name
and gets its own in one move, so that a process may die at any time.
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from errors import UserError
from training import manifest

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every save in several lines

SAVING, DAMAGED = ".saving", "damaged-"  # behind the name of one that is being made, before that of one set aside
REPLACED = f".replaced{SAVING}"  # behind the name of one whose place another takes
BEFORE_MANIFESTS = "_CHECKPOINT_METADATA"  # stands in checkpoints of runs that were saved before there were manifests


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made at the first save.
        keep: how many of the newest are kept, beside the best one.
    """

    def __init__(self, folder: Path, keep: int = 1):
        self.folder = folder.absolute()
        self._keep = keep
        self._saver: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._verified: set[int] = set()

    # ---- saving

    def save(self, state: Any, position: Any, best: int = -1, again: bool = False) -> None:
        """Starts to save; the state is copied first, so that it may be donated while the write goes on.

        Args:
            best: a step whose checkpoint is kept however old it is, this one's perhaps; -1 for none.
            again: in place of the one that there is of this step; else that stays.

        Raises:
            UserError: this or the save before it could not be written.
        """
        self.wait()
        step = int(state["step"])
        if step in self.steps() and not again:
            return
        # np.asarray of an array on the CPU is a view of its buffer, which the next step overwrites: copy.
        if jax.default_backend() == "cpu":
            state = jax.tree.map(lambda x: x.copy(), state)
        scratch = self.folder / f"{step}{SAVING}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
            if self._saver is None:
                self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
            self._saver.save(scratch / "state", args=ocp.args.StandardSave(state))
        except Exception as error:  # whatever orbax makes of a disk that is full
            raise self._unwritable(error) from error
        self._thread = threading.Thread(target=self._finish, args=(step, scratch, position, best))
        self._thread.start()

    def check(self) -> None:
        """Raises UserError if a save went wrong; costs nothing, and is called in every step."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._unwritable(failure) from failure

    def wait(self) -> None:
        """Returns when the save that is under way is on the disk; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        self.wait()
        if self._saver is not None:
            self._saver.close()

    def _finish(self, step: int, scratch: Path, position: Any, best: int) -> None:
        """What is left of a save when the arrays are on their way: in a thread of its own."""
        try:
            assert self._saver is not None
            self._saver.wait_until_finished()
            if jax.process_index() != 0:
                return
            (scratch / "position.json").write_text(json.dumps(position), encoding="utf-8")
            manifest.write(scratch)
            target, replaced = self.folder / str(step), self.folder / f"{step}{REPLACED}"
            if target.is_dir():
                target.rename(replaced)
            scratch.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
            for old in self.steps()[: -self._keep]:
                if old != best:
                    self._remove(self.folder / str(old))
        except BaseException as error:  # told at the next step
            self._failure = error

    def _remove(self, checkpoint: Path) -> None:
        # Renamed first: half of a checkpoint shall not have the name of a whole one.
        shutil.rmtree(checkpoint.rename(self.folder / f"{checkpoint.name}.old{SAVING}"))

    def _clean(self) -> None:
        """Removes what a process that died has left half made."""
        if jax.process_index() == 0:
            for path in self.folder.glob(f"*{SAVING}"):
                shutil.rmtree(path, ignore_errors=True)

    def _unwritable(self, error: BaseException) -> UserError:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0][:120]
        kept = self.steps()
        mend = "Make room or mend the disk; the same command goes on from "
        mend += f"step {kept[-1]}, which is whole." if kept else "the start."
        return UserError(str(self.folder), f"a checkpoint cannot be written ({reason})", mend)

    # ---- restoring

    def restore(self, template: Any, step: int) -> tuple[Any, Any]:
        """The state and the position of a step; `template` gives structure, shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint is damaged, or holds other parameters or shapes than the template.
        """
        self.verify(step)
        self._check_fit(template, step)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            state = checkpointer.restore(self._state(step), args=ocp.args.StandardRestore(template))
        return state, self.position(step)

    def restore_params(self, step: int, template: Any) -> tuple[Any, Any]:
        """The parameters, or their average where there is one, and the model state, without the optimizer's moments.

        Args:
            template: `{"params": …, "model_state": …}` with shapes and dtypes.
        """
        self.verify(step)
        params = "ema" if "ema" in self._metadata(step) else "params"
        wanted = {params: template["params"], "model_state": template["model_state"]}
        wanted = {name: tree for name, tree in wanted.items() if tree}
        self._check_fit(wanted, step, only=tuple(wanted))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arguments = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
                partial_restore=True,
            )
            restored = checkpointer.restore(self._state(step), args=arguments)
        return restored[params], restored.get("model_state", {})

    def position(self, step: int) -> Any:
        """What was saved beside the state of a step: small, and read without it."""
        own = self.folder / str(step) / "position.json"
        if not own.is_file():
            own = self.folder / str(step) / "position" / "metadata"
        return json.loads(own.read_text(encoding="utf-8"))

    # ---- which there are, and whether they are whole

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, oldest first; folders that are none are passed over."""
        if not self.folder.is_dir():
            return []
        found = [
            path for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir() and any(path.iterdir())
        ]
        return sorted(int(path.name) for path in found)

    def strangers(self) -> list[str]:
        """What lies among the checkpoints and is none, each with what it looks like."""
        found = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if path.name.isdigit() and path.is_dir() and not any(path.iterdir()):
                found.append(f"{path.name} is empty")
            elif not path.name.isdigit() and not path.name.startswith(DAMAGED) and not path.name.endswith(SAVING):
                found.append(f"{path.name} is none")
        return found

    def report(self, say: Callable[[str], None]) -> None:
        """Says of each checkpoint whether it is whole; raises UserError if one is not, or if there is none."""
        complaints = {step: self.complaint(step) for step in self.steps()}
        for step, complaint in complaints.items():
            say(f"step {step}: {f'damaged: {complaint}' if complaint else 'whole'}")
        for stranger in self.strangers():
            say(f"no checkpoint: {stranger}")
        if not complaints or any(complaints.values()):
            value = "has a damaged checkpoint" if complaints else "has no checkpoint"
            mend = "train.py goes on from the newest that is whole." if not all(complaints.values()) else "Begin anew."
            raise UserError("--workdir", f"{self.folder.parent} {value}", mend)

    def complaint(self, step: int) -> str:
        """What is wrong with the checkpoint of a step; empty if it is whole."""
        folder = self.folder / str(step)
        if (folder / BEFORE_MANIFESTS).is_file():
            return ""
        return manifest.complaint(folder)

    def verify(self, step: int) -> None:
        """Raises UserError if the checkpoint of a step is not what was saved."""
        if step in self._verified:
            return
        reason = self.complaint(step)
        if reason:
            mend = "Name another checkpoint, or let train.py go on from one before it."
            raise UserError(str(self.folder / str(step)), f"is damaged: {reason}", mend)

    def newest_whole(self, log: Callable[[str], None], set_aside: bool = False) -> int | None:
        """The newest step whose checkpoint is whole; None if none was ever made.

        Args:
            set_aside: rename the damaged ones behind it, so that the run can go on over their steps.

        Raises:
            UserError: there are some, and none is whole.
        """
        for path in self.folder.glob(f"*{REPLACED}") if set_aside else ():
            own = self.folder / path.name.removesuffix(REPLACED)
            if not own.exists():  # killed between the two moves
                path.rename(own)
        for stranger in self.strangers() if set_aside else ():
            log(f"among the checkpoints {stranger}: passed over")
        steps = self.steps()
        for step in reversed(steps):
            reason = self.complaint(step)
            if not reason:
                self._verified.add(step)
                return step
            done = ""
            if set_aside and jax.process_index() == 0:
                target = self._aside(step)
                (self.folder / str(step)).rename(target)
                done = f": set aside as {target.name}"
            log(f"checkpoint of step {step} is damaged ({reason}){done}")
        if steps or any(self.folder.glob(f"{DAMAGED}*")):
            mend = "Bring one back from a copy, or begin anew with another --workdir."
            raise UserError(str(self.folder), "holds no checkpoint that is whole", mend)
        return None

    def _aside(self, step: int) -> Path:
        """A name that is free."""
        names = (f"{DAMAGED}{step}{f'-{number}' if number else ''}" for number in range(10**6))
        return next(path for path in map(self.folder.joinpath, names) if not path.exists())

    def _state(self, step: int) -> Path:
        return self.folder / str(step) / "state"

    def _metadata(self, step: int) -> Any:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            metadata = checkpointer.metadata(self._state(step))
        return getattr(metadata, "item_metadata", metadata).tree

    def _check_fit(self, template: Any, step: int, only: tuple[str, ...] = ()) -> None:
        def described(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {
                jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
                for path, leaf in leaves
            }

        there = self._metadata(step)
        saved = described({name: there[name] for name in only or there if name in there})
        wanted = described(template)
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                one, other = (_shape_text(tree.get(path)) for tree in (saved, wanted))
                raise UserError(
                    str(self.folder / str(step)),
                    f"{path} is {one} there and {other} in this run",
                    "Use another --workdir.",
                )


def _shape_text(described: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if described is None else f"{described[1]}{list(described[0])}"
