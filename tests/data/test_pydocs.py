import ast
import importlib.metadata
import sysconfig
from pathlib import Path

import pytest

from data import pydocs
from data.pydocs import PyDocs, requirement_names
from data.sources import open_source
from errors import UserError


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    """A small standard library instead of this Python's."""
    content = {
        "alpha.py": '"""The first module of all, really."""\ndef f():\n    """Too short."""\n',
        "beta/__init__.py": "class A:\n    '''A class with\n       a second line here.\n    '''\n"
        "    try:\n        pass\n    except ValueError:\n"
        "        async def g(self): 'A deep function has words too.'\n",
        "gamma.py": "def f():\n    'The first module of all, really.'\n    x = 'This is no docstring at all.'\n",
        "broken.py": "def (:\n",
        "latin.py": b"# coding: latin-1\n'''Caf\xe9s are open on all days.'''\n",
        "surrogate.py": "'''One \\ud800 that stands alone here.'''\n",
        "test/helper.py": '"""This helper of the tests is left out."""\n',
        "beta/tests/a.py": '"""This test of the beta package too."""\n',
        "site-packages/p.py": '"""And so is this installed package, sure."""\n',
        "pydoc_data/topics.py": "topics = {'if': 'The if statement\\n****\\n\\nis for conditional execution.'}\n",
    }
    for name, text in content.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "lib"


def test_docstrings_and_the_language_reference_are_extracted_once_each(library):
    source = PyDocs([])
    assert [source[i] for i in range(len(source))] == [
        {"text": text, "label": "python"}
        for text in (
            "The first module of all, really.",
            "A class with\na second line here.",
            "A deep function has words too.",
            "Cafés are open on all days.",
            "One ? that stands alone here.",
            "The if statement\n****\n\nis for conditional execution.",
        )
    ]


def test_a_second_opening_parses_nothing(library, monkeypatch):
    first = PyDocs([])
    docs = [first[i] for i in range(len(first))]

    def refuse(path):
        raise AssertionError(f"parsed {path} again")

    monkeypatch.setattr(pydocs, "_tree", refuse)
    second = PyDocs([])
    assert second.fingerprint == first.fingerprint and [second[i] for i in range(len(second))] == docs


def test_a_record_is_named_by_its_number(library):
    assert PyDocs([]).where(12) == "pydocs: record 12"


def test_opening_extracts_nothing(library, monkeypatch):
    monkeypatch.setattr(pydocs, "_tree", lambda path: pytest.fail("extracted at opening"))
    assert open_source("pydocs").fingerprint and open_source("pydocs").name == "pydocs"


def test_packages_are_read_from_their_files_under_their_own_name(monkeypatch, tmp_path):
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path))
    source = PyDocs(["absl-py", "no-such-distribution", "ml-collections"], with_python=False)
    found = [source[i] for i in range(len(source))]
    assert list(dict.fromkeys(record["label"] for record in found)) == ["absl-py", "ml-collections"]
    assert len({record["text"] for record in found}) == len(found) > 100
    assert min(len(record["text"].split()) for record in found) >= 5

    expected = set()  # ast's own walk, as the reference
    for file in importlib.metadata.files("absl-py") or []:
        if file.suffix == ".py" and "tests" not in file.parts:
            for node in ast.walk(ast.parse(Path(str(file.locate())).read_text("utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    expected.add(ast.get_docstring(node) or "")
    expected = {doc for doc in expected if len(doc.split()) >= 5}
    assert {record["text"] for record in found if record["label"] == "absl-py"} == expected


def test_the_fingerprint_follows_python_the_packages_and_their_versions(monkeypatch):
    fingerprints = [PyDocs(["absl-py"]).fingerprint, PyDocs([]).fingerprint, PyDocs(["absl-py"], False).fingerprint]
    assert PyDocs(["absl-py", "no-such-distribution"]).fingerprint == fingerprints[0]
    monkeypatch.setattr(pydocs.platform, "python_version", lambda: "3.99.0")
    fingerprints.append(PyDocs(["absl-py"]).fingerprint)
    monkeypatch.setattr(pydocs.importlib.metadata, "version", lambda name: "99.0")
    fingerprints.append(PyDocs(["absl-py"]).fingerprint)
    assert len(set(fingerprints)) == 5


def test_requirement_names_are_read_from_any_requirements_file(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text(
        "# comment\n\njax>=0.10,<0.13\n  flax [all] ~= 0.12 ; python_version > '3.10'  # why\nnumpy\n"
        "-r other.txt\n-c constraints.txt\n--index-url https://example.org/simple\nmy_tool @ https://example.org/t.whl\n"
        "https://example.org/u.whl\n./local\nscikit-learn==1.7\nzope.interface;python_version<'4'\nnumpy\n"
    )
    expected = ["jax", "flax", "numpy", "my_tool", "scikit-learn", "zope.interface"]
    assert requirement_names(path) == expected


def test_the_requirements_of_this_repository_are_found():
    assert {"jax", "flax", "grain"} <= set(requirement_names(pydocs.REQUIREMENTS))


def test_another_text_column_is_refused():
    with pytest.raises(UserError, match="'body'\ncolumns of pydocs: text, label"):
        open_source("pydocs", text="body")
