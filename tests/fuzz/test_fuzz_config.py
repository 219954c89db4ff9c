"""What a run is made of: its config.json, the words of the command line, the manifest of a folder."""

import contextlib
import functools
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cli import config
from errors import UserError
from models import MODELS
from tasks import TASKS, read_config
from training import logbook, manifest

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**31, 2**64, 10**400]),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from([*TASKS, "size", "sha256"]),
    ),
    lambda values: st.one_of(
        st.lists(values, max_size=3),
        st.dictionaries(st.text(max_size=4), values, max_size=3),
        st.dictionaries(
            st.sampled_from(["task", "model", "name", "a.b", "items", "keys", "__class__", "lock"]), values, max_size=3
        ),
    ),
    max_leaves=8,
)


def in_three_lines(error: UserError) -> None:
    assert len(str(error).splitlines()) <= 3 and str(error).strip()


# ---- config.json of a run


@given(st.one_of(st.binary(max_size=40), JSON.map(lambda value: json.dumps(value).encode())))
@example(b"[" * 100_000)
@example(b'{"task": "mlm", "a": ' + b'{"a": ' * 500 + b"1" + b"}" * 501)
@example(b'{"task": ["mlm"]}')
@example(b'{"task": {}}')
@example(b'{"task": [{}]}')
@example(b'{"task": "mlm", "items": 1}')
@example(b'{"task": "mlm", "a": {"__init__": 1, "_fields": 2, "": 3}}')
@example(b'{"task": "mlm", "a": [{"a.b": 1}], "a.b": 2}')
def test_a_config_json_of_any_content_is_a_config_or_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    try:
        found = read_config(tmp_path)
    except UserError as error:
        in_three_lines(error)
        return
    assert isinstance(found, ConfigDict) and found.task in TASKS


@pytest.mark.parametrize("name", ["a" * 300, "no/such/folder", "a\0"])
def test_a_workdir_of_any_name_is_refused(tmp_path, name):
    with pytest.raises(UserError) as refused:
        read_config(tmp_path / name)
    in_three_lines(refused.value)


# ---- the command line

FILES = ["bert_mlm", "bert_classify", "transformer_mt", "gpt_lm", "vit_classify", "vae"]
STARTS = [[f"--config=configs/{file}.py:smoke"] for file in FILES]
STARTS += [[*STARTS[4], f"--config.model.name={name}"] for name in ("resnet", "mlp")]
STARTS += [[*STARTS[1], f"--config.model.name={name}"] for name in ("cnn", "lstm")]


@functools.cache
def keys_of(number: int) -> list[str]:
    """The flags that there are behind one of these starts."""
    found = config.from_command_line(["train.py", *STARTS[number]], "")[0]
    return sorted(f"config.{key}" for key in config.flatten(found))


NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "1e999",
            "-1e999",
            "nan",
            "1e400",
            "9" * 5_000,
            "0" * 5_000,
            "1_000",
            "１２",
            "0x10",
            "1e3",
            "-0",
            "+1",
            " 1 ",
            "",
        ]
    ),
)
LITERALS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.binary(max_size=3),
        st.complex_numbers(),
    ),
    lambda values: st.one_of(
        st.lists(values, max_size=3),
        st.lists(values, max_size=3).map(tuple),
        st.tuples(st.integers(0, 3), st.tuples(st.tuples(st.just(".*"), values))),
        st.dictionaries(st.text(max_size=2), values, max_size=2),
    ),
    max_leaves=6,
).map(repr)
SNIPPETS = st.sampled_from(
    ["(", ")", ",", "'.*'", "1.0", "[", "]", "{", "}", "0", "'freeze'", ":", "\\", "\n", "1e999", "b''", "-", "j"]
)
VALUES = st.one_of(
    st.text(max_size=8),
    NUMBERS,
    LITERALS,
    st.lists(SNIPPETS, max_size=8).map("".join),
    st.sampled_from(
        ["true", "False", "mlm", "vae", "bert", "gpt", "resnet", "adamw", "cosine", "pydocs", "cosin", "()", "((),)"]
    ),
)
STRAYS = st.one_of(
    st.builds(
        "--{}={}".format,
        st.sampled_from(["workdir", "config", "help", "", "flagfile", "undefok", "noconfig"]),
        st.text(max_size=5),
    ),
    st.sampled_from(["--", "-", "--=", "--help", "-h", "--helpfull", "--helpxml", "--undefok", "--flagfile", "stray"]),
    st.sampled_from(["", "---a", "-?", "--config.seed", "--noconfig.data.whole_word", "--config.train"]),
    st.text(max_size=6).map(lambda text: f"--{text}"),
    st.text(max_size=6),
)


@st.composite
def commands(draw) -> list[str]:
    """A whole config, and a few words behind it: most of them are flags that there are."""
    number = draw(st.integers(0, len(STARTS) - 1))
    flags = st.builds("--{}={}".format, st.sampled_from(keys_of(number)), VALUES)
    return [*STARTS[number], *draw(st.lists(st.one_of(flags, flags, flags, STRAYS), max_size=3))]


def resolved_or_refused(words: list[str]) -> None:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found, workdir, given_names, *_ = config.from_command_line(["train.py", *words], "usage")
    except UserError as error:
        in_three_lines(error)
        return
    except SystemExit as stop:
        assert stop.code == 0 and "Flags and their defaults" in printed.getvalue()
        return
    assert isinstance(workdir, Path) and given_names <= set(config.flatten(found))
    assert config.differences(found, found) == []
    json.dumps(config.as_json(found))
    try:
        config.resolve_steps(found, rows=10**6)
        assert type(found.train.steps) is int
        TASKS[found.task].check(found)
        MODELS[found.model.name].config(**{name: value for name, value in found.model.items() if name != "name"})
    except UserError as error:
        in_three_lines(error)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")  # of Python's about literals
@given(commands())
@example([*STARTS[0], "--config.optimizer.rules=" + "(" * 1_000])
@example([*STARTS[0], "--config.optimizer.rules=" + "-" * 100_000 + "1"])
@example([*STARTS[0], "--config.optimizer.rules={[]: 1}"])
@example([*STARTS[0], "--config.optimizer.rules=(('.*', b'x'),)"])
@example([*STARTS[0], "--config.optimizer.rules=(('.*', {1}),)"])
@example([*STARTS[0], "--config.optimizer.rules=(('.*', {'a': 1}),)"])
@example([*STARTS[0], "--config.optimizer.decay_rules=((1j, 2),)"])
@example([*STARTS[0], "--config.optimizer.rules=(('.*', 1e999),)"])
@example([*STARTS[0], "--config.optimizer.phases=((0, ()), (1, [1]))"])
@example([*STARTS[0], "--config.optimizer.phases=([0, [['.*', 1.0]]],)"])
@example([*STARTS[0], "--config.train.steps=0", "--config.train.epochs=1e308"])
@example([*STARTS[0], "--config.train.steps=1e308"])
@example([*STARTS[0], "--config.seed=" + "0" * 5_000])
@example([*STARTS[0], "--config=" + "a" * 300])
@example([*STARTS[0], "--config=a\0"])
@example([*STARTS[0], "--config"])
@example([*STARTS[0], "--flagfile=/no/such/file"])
@example([*STARTS[0], "--flagfile"])
@example([*STARTS[0], "--flagfile=a\0"])
@example([*STARTS[0], "--config.optimizer.rules=(('.*', " + "9" * 400 + "),)"])
@example([*STARTS[0], "--config.seed=1e300"])
@example([*STARTS[6], "--config.model.depths=('a', 'b')"])
@example([*STARTS[6], "--config.model.widths=(8.5, 16)"])
@example([*STARTS[4], "--config.data.mean=('a',)"])
@example([*STARTS[1], "--config.data.labels=(1, ('a', 2))"])
@example([*STARTS[0], "--flagfile=."])
@example([*STARTS[0], "--undefok=a", "--a=1"])
@example([*STARTS[0], "--undefok"])
def test_any_words_behind_a_config_are_a_config_or_refused(words):
    resolved_or_refused(words)


@given(st.lists(STRAYS, max_size=3))
@example([])
@example(["--config=configs/base.py"])
@example(["--config=configs/__init__.py"])
@example(["--config=configs"])
@example(["--config=configs/bert_mlm.py:" + "a" * 300])
def test_any_words_at_all_are_a_config_or_refused(words):
    resolved_or_refused(words)


@pytest.mark.parametrize(
    "content",
    [
        "def get_config():\n    return None",
        "def get_config():\n    return {}",
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()",
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'model': 3})",
        "from configs import base\ndef get_config():\n    got = base.get_config()\n    del got.train\n    return got",
        "from configs.base import get_config",
        "get_config = 1",
        "",
        "\0",
        "(",
    ],
)
def test_a_config_file_that_gives_no_config_is_refused(tmp_path, content):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError) as refused:
        config.from_command_line(["train.py", f"--config={path}"], "usage")
    in_three_lines(refused.value)


def test_a_file_of_flags_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "flags").write_bytes(b"--config.seed=1\n\xff")
    resolved_or_refused([*STARTS[0], f"--flagfile={tmp_path / 'flags'}"])


# ---- the manifest

DIGEST = hashlib.sha256(b"hello").hexdigest()
SECRET = "../outside"
FILES = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                "a",
                "deep/b",
                SECRET,
                "deep/../../outside",
                "/etc/passwd",
                "/dev/zero",
                "../../../../../../dev/zero",
                "pipe",
            ]
        ),
        st.sampled_from(["", ".", "..", "deep", "a\0", "a" * 300, "\ud800", "manifest.json", "link", "a/b", "\n\n\n"]),
        st.text(max_size=4),
    ),
    st.one_of(
        JSON,
        st.fixed_dictionaries(
            {
                "size": st.sampled_from([5, 0, 5.0, "5", None, [], -1, True]),
                "sha256": st.sampled_from([DIGEST, "", None, 5]),
            }
        ),
        st.dictionaries(st.sampled_from(["size", "sha256"]), JSON, max_size=2),
    ),
    max_size=3,
)
CONTENTS = st.one_of(
    JSON.map(json.dumps),
    FILES.map(lambda files: json.dumps({"files": files})),
    JSON.map(lambda files: json.dumps({"files": files})),
    st.text(max_size=20),
    st.sampled_from(["[" * 100_000, '{"files": ' + "[" * 100_000, "9" * 5_000]),
)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b", SECRET):
        (folder / name).write_text("hello")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    return folder


def check(folder: Path, content: bytes) -> str:
    (folder / manifest.NAME).write_bytes(content)
    found = manifest.complaint(folder)
    assert isinstance(found, str) and len(found.splitlines()) <= 1
    return found


@given(st.one_of(st.binary(max_size=60), CONTENTS.map(lambda text: text.encode("utf-8", "replace"))))
def test_a_manifest_of_any_content_is_complained_of(folder, content):
    assert check(folder, content)


@given(CONTENTS)
@example(json.dumps({"files": {SECRET: {"size": 5, "sha256": DIGEST}}}))
@example(json.dumps({"files": {"/dev/zero": {"size": 0, "sha256": DIGEST}}}))
@example(json.dumps({"files": {"pipe": {"size": 0, "sha256": DIGEST}}}))
@example(json.dumps({"files": {"link": {"size": 0, "sha256": DIGEST}}}))
@example(json.dumps({"files": {"deep": {"size": 4096, "sha256": DIGEST}}}))
@example(json.dumps({"files": {"a": {"size": "5"}}}))
@example(json.dumps({"files": {"a": 5}}))
@example(json.dumps({"files": {"a\0": {"size": 5, "sha256": DIGEST}}}))
@example(json.dumps({"files": {"a" * 300: {"size": 5, "sha256": DIGEST}}}))
@example(json.dumps({"files": [1]}))
@example(json.dumps([1]))
def test_a_manifest_with_a_right_digest_vouches_for_its_own_files_alone(folder, content):
    clean = content.encode("utf-8", "replace").decode("utf-8")
    digest = hashlib.sha256(clean.encode("utf-8")).hexdigest()
    found = check(folder, f"{clean}\n{digest}\n".encode())
    if not found:
        files = json.loads(clean)["files"]
        assert all(Path(name) in (Path("a"), Path("deep/b"), Path("deep/../a")) for name in files)
        assert all(about["size"] == 5 and about["sha256"] == DIGEST for about in files.values())


# ---- the records of a run

RECORDS = st.one_of(
    st.builds(lambda step: json.dumps({"step": step, "split": "train", "loss": 0.5}).encode(), st.integers(0, 9)),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
    st.sampled_from(
        [b'{"step": 1, "spl', '{"step": 1, "a": "\u2028"}'.encode(), b"9" * 5_000, b"[" * 100_000, b'{"step": 1e400}']
    ),
)


@given(st.lists(RECORDS, max_size=6), st.integers(0, 9))
def test_the_records_up_to_a_step_are_kept_and_nothing_else_is(tmp_path, lines, step):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    logbook._cut_back(path, step)
    kept = path.read_bytes()
    steps = [json.loads(line)["step"] for line in kept.splitlines()]
    assert all(isinstance(written, int) and written <= step for written in steps)
    own = [line for line in lines if line.startswith(b'{"step": ') and line.endswith(b'"loss": 0.5}')]
    wanted = [line for line in own if json.loads(line)["step"] <= step]
    assert [line for line in kept.splitlines() if line in own] == wanted
    logbook._cut_back(path, step)
    assert path.read_bytes() == kept
