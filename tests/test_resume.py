"""Of every task: a run that lost its last checkpoints goes on and ends as one that did not, to the bit.

Of pretraining a real kill is in test_commands.py, and many in `python -m benchmarks.faults`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import tree_util

import train
from data.pipeline import TrainBatches
from training.checkpoints import Checkpoints

STEPS = 16
BATCH = 8
# Some 70 rows each: a first epoch ends after some 9 steps.
EXPERIMENTS = {
    "mlm": ["--config=configs/bert_mlm.py:smoke", "--config.data.limit=28", "--config.data.tokenizer=wordpiece:128"],
    "fine-tuning": ["--config=configs/bert_classify.py:smoke", "--config.data.limit=110", "--config.train.epochs=0"],
    "translation": [
        "--config=configs/transformer_mt.py:smoke",
        "--config.data.tokenizer=unigram:512",
        "--config.data.limit=70",
    ],
    "gpt": ["--config=configs/gpt_lm.py:smoke", "--config.data.limit=28", "--config.data.tokenizer=bpe:512"],
    "pictures": ["--config=configs/vit_classify.py:smoke", "--config.data.limit=70"],
    "batch-norm": ["--config=configs/vit_classify.py:smoke", "--config.data.limit=70", "--config.model.name=resnet"],
    "vae": ["--config=configs/vae.py:smoke", "--config.data.limit=70"],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    """Pairs of lines, some 500 of them, so that a first epoch of their rows ends in time."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = [f"the {i} ships and {i % 7} letters of the {'king' if i % 3 else 'queen'}" for i in range(250)]
    (folder / "pairs.en").write_text("\n".join(lines), encoding="utf-8")
    (folder / "pairs.zh").write_text("\n".join(f"{i} 艘船和 {i % 7} 封信" for i in range(250)), encoding="utf-8")
    return f"parallel:{folder}/pairs.zh,{folder}/pairs.en"


@pytest.fixture
def experiment(corpus, labelled, pairs, pretrained):
    """The arguments of a task's run that takes seconds and saves at every step."""
    text = f"--config.data.train=text:{corpus}"
    own = {
        "mlm": [text],
        "gpt": [text],
        "translation": [f"--config.data.train={pairs}"],
        "fine-tuning": [f"--config.data.train=csv:{labelled}", f"--config.init_from={pretrained}"],
        "batch-norm": ["--config.model.depths=(1,1)", "--config.model.widths=(8,16)"],
    }
    every = [f"--config.train.{name}={value}" for name, value in (("steps", STEPS), ("batch_size", BATCH))]
    every += ["--config.train.checkpoint_every=1", "--config.train.keep=99", "--config.train.eval_every=8"]
    return lambda name: ["train.py", *EXPERIMENTS[name], *own.get(name, []), *every]


def everything(run: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, the optimizer's and the model's other state too."""
    tree = ocp.PyTreeCheckpointer().restore((run / "checkpoints" / str(STEPS) / "state").absolute())
    return {tree_util.keystr(path): np.asarray(leaf) for path, leaf in tree_util.tree_leaves_with_path(tree)}


def records(run: Path) -> list[tuple]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["split"], record["loss"]) for record in found]


# What resumes of these have of their own is looked at in test_finetune.py, tests/interop/test_marian.py and
# tests/training/test_frozen_norms.py as well.
SLOW = ("fine-tuning", "translation", "pictures", "batch-norm", "vae")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXPERIMENTS]
)
def test_a_run_goes_on_to_the_bit_from_amid_an_epoch_from_its_edge_and_from_amid_a_save(
    name, experiment, tmp_path, monkeypatch
):
    rows_of_runs = []
    make = TrainBatches.__init__
    monkeypatch.setattr(
        TrainBatches,
        "__init__",
        lambda self, rows, *a, **b: rows_of_runs.append(rows.count) or make(self, rows, *a, **b),
    )
    whole = tmp_path / "whole"
    assert train.main([*experiment(name), f"--workdir={whole}"]) == 0
    edge = rows_of_runs[0] // BATCH  # the batch behind this step holds the end of an epoch, and the start of the next
    assert 2 < edge < STEPS - 1, f"{rows_of_runs[0]} rows"
    expected = everything(whole)
    for stopped in (2, edge):
        broken = tmp_path / f"broken-{stopped}"
        shutil.copytree(whole, broken)
        for step in Checkpoints(broken / "checkpoints").steps():
            if step > stopped + 1:
                shutil.rmtree(broken / "checkpoints" / str(step))
        amid_a_save = broken / "checkpoints" / f"{stopped + 1}"
        amid_a_save.rename(amid_a_save.with_name(f"{stopped + 1}.saving"))
        (broken / "checkpoints" / f"{stopped + 1}.saving" / "manifest.json").unlink()
        assert train.main([*experiment(name), f"--workdir={broken}"]) == 0
        found = everything(broken)
        assert found.keys() == expected.keys()
        for path, array in expected.items():
            np.testing.assert_array_equal(array, found[path], err_msg=f"{path}, stopped behind step {stopped}")
        assert records(broken) == records(whole)
        assert not list((broken / "checkpoints").glob("*.saving"))
