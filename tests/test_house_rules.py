"""Who may import whom: the rooms of the house and their doors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "configs", "data", "evaluation", "interop", "models", "tasks", "training", "benchmarks")
COMMANDS = ("train", "eval", "predict", "convert")

# What each room may import of the project itself; errors.py is open to every room.
INSIDE = {
    "errors": set(),
    "configs": {"configs"},
    "data": {"data"},
    "models": {"models"},
    "evaluation": {"evaluation"},
    "interop": {"interop", "models", "data"},
    "training": {"training"},
    "tasks": {"tasks", "models", "data", "evaluation"},
    "cli": {"cli", "configs", "tasks", "models", "data", "interop", "training"},
    "train": {"cli", "tasks", "models", "data", "training"},
    "eval": {"cli", "tasks", "models", "data", "training", "evaluation"},
    "predict": {"cli", "tasks"},
    "convert": {"cli", "configs", "tasks", "models", "data", "interop", "training"},
    "benchmarks": {"benchmarks", "train", "cli", "configs", "tasks", "models", "data", "training", "evaluation"},
}
# `tasks.restore` is what a notebook starts from, and a run's parameters lie in its checkpoint: the one door.
DOORS = {("tasks/__init__.py", "training.checkpoints")}

# What each room may import of other people's packages, beside the standard library.
OUTSIDE = {
    "configs": {"ml_collections"},
    "models": {"jax", "flax", "numpy"},
    "training": {"jax", "flax", "optax", "orbax", "tensorboardX", "numpy", "tqdm"},
    "data": {"numpy", "grain", "tokenizers", "sentencepiece", "tensorflow_datasets", "etils", "babel"}
    | {"PIL", "sklearn"},
    "evaluation": {"numpy", "sklearn", "scipy", "matplotlib", "sacrebleu"},
    "interop": {"numpy", "safetensors", "huggingface_hub"},
}


def files() -> list[Path]:
    found = [ROOT / f"{name}.py" for name in (*COMMANDS, "errors")]
    return found + [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_the_rooms_it_may(path):
    own = {*ROOMS, *COMMANDS, "errors"}
    for name in imports(path):
        top = name.split(".")[0]
        door = any(path == ROOT / file and name.startswith(module) for file, module in DOORS)
        if top in own and top != "errors" and not door:
            assert top in INSIDE[room(path)], f"{path.name} may not import {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_the_packages_it_may(path):
    import sys

    own = {*ROOMS, *COMMANDS, "errors", *sys.stdlib_module_names}
    foreign = {name.split(".")[0] for name in imports(path)} - own
    assert foreign <= OUTSIDE.get(room(path), foreign)


def test_jax_stays_out_of_the_data():
    assert not any(name.split(".")[0] == "jax" for path in files() if room(path) == "data" for name in imports(path))


def test_only_one_room_knows_orbax():
    knows = [path.name for path in files() if any(name.startswith("orbax") for name in imports(path))]
    assert knows == ["checkpoints.py"]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_outgrows_its_reader(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "imp", "runpy"}
# The one file that is code: the experiment, which train.py alone runs.
RUNS_A_CONFIG = "cli/config.py"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_can_run_code(path):
    """No pickle, no import by a string, no eval: config.json, checkpoints, weights and data are data."""
    name = path.relative_to(ROOT).as_posix()
    assert not {module.split(".")[0] for module in imports(path)} & RUNS_CODE, name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        assert not (isinstance(node.func, ast.Name) and called in ("eval", "exec", "__import__")), (
            f"{name}:{node.lineno}: {called}"
        )
        if called in ("import_module", "exec_module", "spec_from_file_location", "module_from_spec"):
            assert name == RUNS_A_CONFIG, f"{name}:{node.lineno}: {called}"
        if called == "load" and ast.unparse(node.func) in ("np.load", "numpy.load"):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert given.get("allow_pickle", "False") == "False", f"{name}:{node.lineno}: np.load of pickles"


def test_no_command_but_train_runs_a_config():
    """eval.py, predict.py and convert.py read config.json."""
    for command in ("eval", "predict"):
        assert not any("from_command_line" in line for line in (ROOT / f"{command}.py").read_text().splitlines())
