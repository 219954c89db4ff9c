"""The source `pydocs`: real English prose that every installation has, with its package as a label.

It holds the docstrings of the standard library and of the packages that requirements.txt names, read from their files
with `ast` and never imported, and the interpreter's language reference. Records: `text`, `label`.
"""

import ast
import importlib.metadata
import inspect
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from data.cache import cached_folder, fingerprint
from data.files import FileRecords, open_files
from errors import UserError

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
VERSION = 1  # of the extraction: raise it when the records change
LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "__pycache__"}
FEWEST_WORDS = 5


def open_pydocs(rest: str = "", text: str = "text", document: str = "", field: str = "") -> FileRecords:
    """The documentation of this interpreter and of the packages in requirements.txt; extracted once, then cached."""
    if text != "text":
        raise UserError("config.data.text", f"no column {text!r}", "The columns of pydocs are: text, label.")
    return documentation_of(requirement_names(REQUIREMENTS))


def documentation_of(packages: list[str], with_python: bool = True) -> FileRecords:
    """The documentation of some packages; one that is not installed is left out.

    Args:
        with_python: the standard library and the language reference too, under the label `python`.
    """
    installed: dict[str, str] = {}
    for name in packages:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    python = platform.python_version() if with_python else ""
    key = fingerprint(VERSION, python, json.dumps(installed))

    def extract(folder: Path) -> None:
        seen: set[str] = set()
        with (folder / "docs.jsonl").open("w", encoding="utf-8") as out:
            for label in (["python"] if with_python else []) + list(installed):
                for doc in _python_docs() if label == "python" else _package_docs(label):
                    if doc not in seen and len(doc.split()) >= FEWEST_WORDS:
                        seen.add(doc)
                        out.write(json.dumps({"text": doc, "label": label}) + "\n")

    records = open_files("jsonl", str(cached_folder("pydocs", key, extract) / "docs.jsonl"), "text", "", "pydocs")
    records.name = "pydocs"
    return records


def requirement_names(path: Path) -> list[str]:
    """The distributions that a requirements file names, in its order."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    names = (re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines)
    return list(dict.fromkeys(name[0] for name in names if name))


def _python_docs() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            yield from _docstrings(path)
    for node in ast.walk(_tree(library / "pydoc_data" / "topics.py")):  # the reference is one dict of long strings
        if isinstance(node, ast.Dict):
            yield from (inspect.cleandoc(v.value) for v in node.values if _is_text(v))


def _package_docs(name: str) -> Iterator[str]:
    for file in sorted(importlib.metadata.distribution(name).files or [], key=str):
        if file.suffix == ".py" and LEFT_OUT.isdisjoint(file.parts):
            yield from _docstrings(Path(str(file.locate())))


def _docstrings(path: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(_tree(path)):
        if (
            isinstance(node, documented)
            and node.body
            and isinstance(node.body[0], ast.Expr)
            and _is_text(node.body[0].value)
        ):
            doc = inspect.cleandoc(node.body[0].value.value)
            # A lone surrogate, written as an escape, has no UTF-8.
            yield doc.encode("utf-8", "replace").decode("utf-8")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _tree(path: Path) -> ast.Module:
    """The syntax of a file; of one that this Python cannot read, nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ast.Module(body=[], type_ignores=[])
