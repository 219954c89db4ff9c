"""The source `pydocs`: real English prose that every installation has, with its package as a label.

It holds the docstrings of the standard library and of the packages that requirements.txt names, read from their files
with `ast` and never imported, and the interpreter's language reference. Records: `text`, `label`.
"""

import ast
import functools
import importlib.metadata
import inspect
import json
import platform
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from data.cache import cached_folder, fingerprint
from data.files import FileRecords, open_files
from errors import UserError

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
VERSION = 1  # of the extraction: raise it when the records change
LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "__pycache__"}
FEWEST_WORDS = 5


def open_pydocs(rest: str = "", text: str = "text", document: str = "", field: str = "") -> "PyDocs":
    """The documentation of this interpreter and of the packages in requirements.txt."""
    if text != "text":
        raise UserError("config.data.text", f"{text!r}", "columns of pydocs: text, label")
    return PyDocs(requirement_names(REQUIREMENTS))


class PyDocs:
    """The documentation of some packages: extracted at the first use (about ten seconds), then cached.

    Args:
        packages: distributions; one that is not installed is left out.
        with_python: the standard library and the language reference too, under the label `python`.
    """

    def __init__(self, packages: list[str], with_python: bool = True):
        self.name = "pydocs"
        self._labels = ["python"] if with_python else []
        versions = {"python": f"{platform.python_implementation()} {platform.python_version()}"} if with_python else {}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
            self._labels.append(package)
        self.fingerprint = fingerprint(VERSION, json.dumps(versions))

    @functools.cached_property
    def _records(self) -> FileRecords:
        folder = cached_folder("pydocs", self.fingerprint, self._extract)
        return open_files("jsonl", str(folder / "docs.jsonl"), "text", "", self.name)

    def _extract(self, folder: Path) -> None:
        seen: set[str] = set()
        with (folder / "docs.jsonl").open("w", encoding="utf-8") as out:
            for label in self._labels:
                for doc in _python_docs() if label == "python" else _package_docs(label):
                    if doc not in seen and len(doc.split()) >= FEWEST_WORDS:
                        seen.add(doc)
                        out.write(json.dumps({"text": doc, "label": label}) + "\n")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]

    def where(self, index: int) -> str:
        return f"pydocs: record {index}"


def requirement_names(path: Path) -> list[str]:
    """The distributions that a requirements file names, in its order."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    # Neither options (-r, -c, -e) nor bare URLs and paths are names.
    names = (re.match(r"([A-Za-z0-9][\w.-]*)\s*(?:[\[(<>=!~;@]|$)", line) for line in lines)
    return list(dict.fromkeys(name[1] for name in names if name))


def _python_docs() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            yield from _docstrings(path)
    for node in ast.walk(_tree(library / "pydoc_data" / "topics.py")):  # the reference is one dict of long strings
        if isinstance(node, ast.Dict):
            yield from (inspect.cleandoc(str(v.value)) for v in node.values if _is_text(v))


def _package_docs(name: str) -> Iterator[str]:
    for file in sorted(importlib.metadata.distribution(name).files or [], key=str):
        if file.suffix == ".py" and LEFT_OUT.isdisjoint(file.parts):
            yield from _docstrings(Path(str(file.locate())))


def _docstrings(path: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in _blocks(_tree(path)):
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr):
            first = node.body[0].value
            if _is_text(first):
                # A lone surrogate, written as an escape, has no UTF-8.
                yield inspect.cleandoc(str(first.value)).encode("utf-8", "replace").decode("utf-8")


def _blocks(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, level by level. As ast.walk, but not into expressions, which hold no docstring: half the time."""
    queue: deque[ast.AST] = deque([tree])
    while queue:
        node = queue.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):  # the body of a lambda is an expression
                queue.extend(inner)


def _is_text(node: ast.AST | None) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _tree(path: Path) -> ast.Module:
    """The syntax of a file; of one that this Python cannot read, nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ast.Module(body=[], type_ignores=[])
