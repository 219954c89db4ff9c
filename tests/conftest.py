"""Shared set-up: a cache of the test run's own, a small English-like corpus, and the commands as a user types them."""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before any test imports JAX: tests neither read nor fill the user's cache. The processes of one run share theirs, so
# that what one has compiled the others need not.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["ROOTSTOCK_CACHE"] = tempfile.mkdtemp(prefix="rootstock-test-cache-")
    # Most of the time goes into compiling programs that then run for milliseconds.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax  # noqa: E402
import pytest  # noqa: E402

from cli import environment  # noqa: E402, F401  (the settings that every command runs with)

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many tests compile the same small programs

ROOT = Path(__file__).parent.parent

NOUNS = "king queen river forest ship letter garden winter soldier mountain village teacher candle horse bridge".split()
VERBS = "sees finds remembers follows builds leaves paints guards crosses describes".split()
ADJECTIVES = "old silent golden broken distant gentle narrow bright forgotten heavy".split()


def sentences(seed: int, count: int) -> list[str]:
    """Random sentences with a grammar, so that there is something to learn."""
    draw = random.Random(seed)

    def phrase() -> str:
        return f"the {draw.choice(ADJECTIVES)} {draw.choice(NOUNS)}"

    return [f"{phrase()} {draw.choice(VERBS)} {phrase()} near {phrase()} ." for _ in range(count)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A text file of 400 paragraphs of one to six sentences."""
    draw = random.Random(7)
    paragraphs = ["\n".join(sentences(seed, draw.randint(1, 6))) for seed in range(400)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def smoke(corpus, tmp_path) -> list[str]:
    """The arguments of a run that takes seconds."""
    return [
        "train.py",
        "--config=configs/bert_mlm.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.train=text:{corpus}",
        "--config.data.tokenizer=wordpiece:128",
    ]


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """Runs one of the project's commands in a process of its own: `command("eval.py", "--workdir=…")`."""

    def run(*words: str, **keywords) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, **keywords
        )

    return run


@pytest.fixture(scope="session")
def simulated() -> Callable[[int], dict[str, str]]:
    """`simulated(8)`: variables for a process that is to take the processor for so many devices.

    They compute nothing ahead: on two cores their threads would sometimes keep each other waiting for too long.
    """

    def variables(count: int) -> dict[str, str]:
        flags = f"--xla_force_host_platform_device_count={count}"
        return {"XLA_FLAGS": flags, "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}

    return variables


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """A csv file, `text` and `label`, of 240 sentences; the label follows from the verb."""
    watching = ("sees", "finds", "remembers", "follows", "guards")
    rows = [f'"{text}",{"watcher" if text.split()[3] in watching else "builder"}' for text in sentences(3, 240)]
    path = tmp_path_factory.mktemp("labelled") / "labelled.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory) -> Path:
    """A pretraining run of a very small model."""
    import train

    workdir = tmp_path_factory.mktemp("pretrained") / "mlm"
    words = ["train.py", "--config=configs/bert_mlm.py:smoke", f"--workdir={workdir}"]
    assert train.main([*words, f"--config.data.train=text:{corpus}", "--config.data.tokenizer=wordpiece:128"]) == 0
    return workdir


@pytest.fixture
def finetune(pretrained, labelled, tmp_path) -> list[str]:
    """The arguments of a fine-tuning run that takes seconds."""
    return [
        "train.py",
        "--config=configs/bert_classify.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--config.init_from={pretrained}",
        f"--config.data.train=csv:{labelled}",
        "--config.optimizer.schedule=constant",  # so that more steps are no other program: few compilations
        "--config.optimizer.warmup_share=0",
    ]


@pytest.fixture
def check_step() -> Callable[..., None]:
    """`check_step(task)`: a step keeps shapes and kinds, parameters are float32. By shapes: nothing is computed."""

    def check(task) -> None:
        import jax
        import numpy as np

        from cli.experiment import assemble
        from training.sharding import make_mesh

        run = assemble(task.config, task, make_mesh(task.config.train.batch_size))
        state = jax.eval_shape(lambda: run.fresh_state(run.phases[0]))
        batch = task.rows("train").load(np.arange(2), np.zeros(2, int))
        lowered, totals = run.lower(run.phases[0], state, batch)
        stepped, counted = lowered.out_info

        def kinds(tree):
            return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

        assert kinds(stepped) == kinds(state) and kinds(counted["sums"]) == kinds(totals["sums"])
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state["params"])} == {"float32"}
        assert counted["sums"]["loss"].dtype == np.float32

    return check


@pytest.fixture(scope="session")
def several(corpus) -> list[str]:
    """The arguments of the run that tests of several devices and processes compare, every step in the log."""
    words = ["train.py", "--config=configs/bert_mlm.py:smoke", f"--config.data.train=text:{corpus}"]
    words += ["--config.data.tokenizer=wordpiece:128", "--config.model.num_heads=2", "--config.model.position=rope"]
    return [*words, "--config.train.log_every=1"]


@pytest.fixture(scope="session")
def one(several, tmp_path_factory) -> Path:
    """That run on one device."""
    import train

    run = tmp_path_factory.mktemp("one") / "run"
    assert train.main([*several, f"--workdir={run}"]) == 0
    return run
