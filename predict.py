"""Reads lines, writes one JSON object for each: what a trained run says of it.

python predict.py --workdir=DIR [--checkpoint=last|best|STEP] [--input=FILE] [--output=FILE] [the task's own flags]
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import tasks
from cli import commandline
from errors import UserError

FLAGS = {"workdir": "", "checkpoint": "last", "input": "", "output": ""}


def main(argv: list[str]) -> int:
    workdir = commandline.given(argv, "workdir")
    options = {}
    if workdir:  # the run's task says which flags there are beside the common ones
        task_class = tasks.TASKS[tasks.read_config(Path(workdir)).task]
        options = {field.name: field.default for field in dataclasses.fields(task_class.Options)}
    flags = commandline.parse(argv, FLAGS | options, __doc__ or "")
    if not flags["workdir"]:
        raise UserError("--workdir", "is missing", "Name the folder of a run: --workdir=runs/NAME")

    def log(line: str) -> None:
        print(line, file=sys.stderr)

    task, model = tasks.restore(workdir, flags["checkpoint"], log)
    chosen = task.Options(**{name: flags[name] for name in options})
    with contextlib.ExitStack() as stack:
        lines = _lines(stack, flags["input"])
        results = task.predict(model, lines, chosen)
        write_to: TextIO | None = None
        for result in results:
            if write_to is None:  # opened once there is something to write, so that a mistake leaves the old file alone
                write_to = _open_output(stack, flags["output"])
            print(json.dumps(result, ensure_ascii=False), file=write_to, flush=True)
    return 0


def _lines(stack: contextlib.ExitStack, path: str) -> Iterator[str]:
    """The lines without their ends; empty ones are passed over."""
    name = path or "standard input"
    stream = sys.stdin.buffer
    try:
        if path:
            stream = stack.enter_context(Path(path).open("rb"))
    except OSError as error:
        raise UserError(
            "--input", f"{path} ({error.strerror})", "Name a text file, a line for each prediction."
        ) from error

    def decoded() -> Iterator[str]:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{name}:{number}", "is not UTF-8", "Convert the text to UTF-8.") from error
            if text:
                yield text

    return decoded()


def _open_output(stack: contextlib.ExitStack, path: str) -> TextIO:
    if not path:
        return sys.stdout
    try:
        return stack.enter_context(Path(path).open("w", encoding="utf-8"))
    except OSError as error:
        raise UserError("--output", f"{path} ({error.strerror})", "Name a file that can be written.") from error


if __name__ == "__main__":
    commandline.run(main)
