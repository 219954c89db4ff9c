"""Checkpoints through orbax: asynchronous, whole or absent. The only room that knows orbax.

One is a folder `DIR/checkpoints/STEP` with two items: `state`, plain nested dicts of arrays, and `position`, JSON that
says where the run stands: in its data, and which of its evaluations was the best.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every save in several lines


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made at the first save.
        keep: how many of the newest are kept, beside the best one.
    """

    def __init__(self, folder: Path, keep: int = 1):
        self.folder = folder.absolute()
        self._preserved = _Preserved(keep)
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preserved,
            create=False,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager: ocp.CheckpointManager | None = None

    def save(self, state: Any, position: Any, best: int = -1) -> None:
        """Starts to save; the state is copied first, so that it may be donated while the write goes on.

        Args:
            best: a step whose checkpoint is kept however old it is, this one's perhaps; -1 for none.
        """
        step = int(state["step"])
        self._preserved.best = best
        self.folder.mkdir(parents=True, exist_ok=True)
        if step in self.steps():
            return
        # np.asarray of an array on the CPU is a view of its buffer, which the next step overwrites: copy.
        if jax.default_backend() == "cpu":
            state = jax.tree.map(lambda x: x.copy(), state)
        items = {"state": ocp.args.StandardSave(state), "position": ocp.args.JsonSave(position)}
        if not self._open().save(step, args=ocp.args.Composite(**items), force=True):
            raise RuntimeError(f"the checkpoint of step {step} was refused in {self.folder}")

    def restore(self, template: Any, step: int) -> tuple[Any, Any]:
        """The state and the position of a step; `template` gives structure, shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint holds other parameters or shapes than the template.
        """
        self._check_fit(template, step)
        items = {"state": ocp.args.StandardRestore(template), "position": ocp.args.JsonRestore()}
        restored = self._open().restore(step, args=ocp.args.Composite(**items))
        return restored["state"], restored["position"]

    def restore_params(self, step: int, template: Any) -> tuple[Any, Any]:
        """The parameters, or their average where there is one, and the model state, without the optimizer's moments.

        Args:
            template: `{"params": …, "model_state": …}` with shapes and dtypes.
        """
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
            restored = checkpointer.restore(self.folder / str(step) / "state", args=arguments)
        return restored[params], restored.get("model_state", {})

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, oldest first; folders that are none are passed over."""
        if not self.folder.is_dir():
            return []
        found = [
            path for path in self.folder.iterdir() if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").exists()
        ]
        return sorted(int(path.name) for path in found)

    def position(self, step: int) -> Any:
        """What was saved beside the state of a step: small, and read without it."""
        return self._open().restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))["position"]

    def wait(self) -> None:
        """Returns when the save that is under way is on the disk; raises what went wrong with it."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(
                self.folder, options=self._options, item_names=("state", "position"), item_handlers=_handlers()
            )
        return self._manager

    def _metadata(self, step: int) -> Any:
        return self._open().item_metadata(step)["state"].tree

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


class _Preserved:
    """Orbax asks it after each save which checkpoints stay."""

    def __init__(self, keep: int):
        self.keep, self.best = keep, -1

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = len(checkpoints) - self.keep
        return [i >= newest or checkpoint.step == self.best for i, checkpoint in enumerate(checkpoints)]


def _handlers() -> dict[str, Any]:
    return {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}


def _shape_text(described: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if described is None else f"{described[1]}{list(described[0])}"
