"""Folders for transformers: they hold what its own hold, they come back the same, and there is never half of one."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.tokenizer import SPECIALS, load_tokenizer, make_tokenizer
from errors import UserError
from interop import folder as folders
from interop.folder import export_folder, open_folder

HEADS = ("mlm", "classification", "features")
LABELS = ("bad", "so-so", "gut ✓")
CLASSES = {
    "learned": dict(zip(HEADS, ("BertForMaskedLM", "BertForSequenceClassification", "BertModel"), strict=True)),
    "rope": dict(
        zip(HEADS, ("RoFormerForMaskedLM", "RoFormerForSequenceClassification", "RoFormerModel"), strict=True)
    ),
}


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *(f"w{i}" for i in range(53))]) + "\n")
    return load_tokenizer(path)


def fields(**changes) -> dict:
    return {
        "num_layers": 2,
        "hidden_size": 24,
        "num_heads": 3,
        "intermediate_size": 40,
        "activation": "gelu_tanh",
        "norm": "post",
        "position": "learned",
        "layer_scale": 0.0,
        "dropout": 0.25,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-9,
        "initializer_range": 0.3,
        "vocab_size": 64,
        "max_positions": 16,
        "type_vocab_size": 3,
        "pooler": True,
    } | changes


@pytest.fixture
def export(drawn, tokenizer):
    """`export(target, head, model, …)` of random parameters, or of given ones."""

    def exported(target, head: str, model: dict, params=None, **more):
        if head == "classification":
            more = {"labels": LABELS, "problem": "multiclass"} | more
        params = drawn(head, model) if params is None else params
        more = {"tokenizer": tokenizer} | more
        return export_folder(target, name="bert", model=model, head=head, params=params, **more)

    return exported


def content(target) -> dict:
    return json.loads((target / "config.json").read_text(encoding="utf-8"))


# ---- what is written


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("head", HEADS)
def test_the_tensors_are_those_that_transformers_saves(tmp_path, roformer, export, head, position):
    kind = CLASSES[position][head]
    key_map = export(tmp_path / "out", head, fields(position=position))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(roformer.golden[f"tensors/{kind}"].tolist())
    assert content(tmp_path / "out")["architectures"] == [kind]
    assert set(key_map.values()) == {name for name in written if "embed_positions" not in name}


def test_the_weights_of_transformers_go_out_as_they_came_in(tmp_path, roformer, bert, export):
    """In and out again is no change of their arrays: rotary pairs too, whose order transformers' outputs prove."""
    for foreign, heads in ((roformer, ("mlm", "classification")), (bert, ("mlm", "features"))):
        found, seen = open_folder(foreign.write()), set()
        for head in heads:
            target = tmp_path / f"{foreign.folder.name}-{head}"
            labels = found.labels if head == "classification" else ()
            export(target, head, found.model, found.params, tokenizer=found.tokenizer, labels=labels)
            for name, array in load_file(target / "model.safetensors").items():
                full = name if name in foreign.weights else "bert." + name
                seen.add(full)
                close = np.testing.assert_allclose if "embed_positions" in name else np.testing.assert_array_equal
                close(array, foreign.weights[full], **({"atol": 1e-5} if "embed_positions" in name else {}))
        assert seen == set(foreign.weights)


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("head", HEADS)
def test_what_goes_out_comes_back_the_same(tmp_path, tokenizer, export, drawn, build, head, position):
    model = fields(position=position)
    params = drawn(head, model)
    key_map = export(tmp_path / "out", head, model, params)
    found = open_folder(tmp_path / "out")
    assert found.key_map == key_map and found.left_over == ()
    has_pooler = head == "classification" or (head == "features" and position == "learned")
    assert found.model == model | {"vocab_size": 58, "pooler": has_pooler}
    assert found.heads == ((head,) if head != "features" else ())
    assert (found.labels, found.problem) == ((LABELS, "multiclass") if head == "classification" else ((), ""))
    for path, array in found.params.items():
        rows = 58 if path in ("embeddings/word/embedding", "mlm_head/bias") else None
        np.testing.assert_array_equal(array, params[path][:rows], err_msg=path)
    assert set(found.params) == {path for path in params if has_pooler or not path.startswith("pooler")}
    assert found.tokenizer.fingerprint == tokenizer.fingerprint

    tokens = np.random.default_rng(0).integers(5, 58, (2, 9)).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    batch["positions"] = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
    before, after = (
        build("features", fields, weights).hidden_states(batch)
        for fields, weights in ((model | {"pooler": False}, params), (found.model | {"pooler": False}, found.params))
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_config_json_says_all_that_transformers_asks(tmp_path, export):
    export(tmp_path / "out", "classification", fields())
    assert content(tmp_path / "out") == {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-9,
        "initializer_range": 0.3,
        "vocab_size": 58,
        "max_position_embeddings": 16,
        "type_vocab_size": 3,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "pad_token_id": 0,
        "dtype": "float32",
        "id2label": {"0": "bad", "1": "so-so", "2": "gut ✓"},
        "label2id": {"bad": 0, "so-so": 1, "gut ✓": 2},
        "problem_type": "single_label_classification",
    }
    export(tmp_path / "rope", "mlm", fields(position="rope"))
    about = content(tmp_path / "rope")
    assert (about["model_type"], about["embedding_size"], about["rotary_value"]) == ("roformer", 24, False)
    assert "id2label" not in about


@pytest.mark.parametrize(
    ("problem", "labels", "written", "back"),
    [
        ("multilabel", LABELS, "multi_label_classification", LABELS),
        ("multiclass", (), "single_label_classification", ("LABEL_0", "LABEL_1", "LABEL_2")),
        ("regression", (), "regression", ()),
    ],
)
def test_every_problem_travels(tmp_path, export, drawn, problem, labels, written, back):
    params = drawn("classification", fields())
    if problem == "regression":
        params |= {path: params[path][..., :1] for path in ("classifier/kernel", "classifier/bias")}
    export(tmp_path / "out", "classification", fields(), params, problem=problem, labels=labels)
    assert content(tmp_path / "out")["problem_type"] == written
    found = open_folder(tmp_path / "out")
    assert (found.problem, found.labels) == (problem, back)
    assert found.params["classifier/bias"].shape == ((1,) if problem == "regression" else (3,))


def test_the_config_of_a_run_will_do_as_it_is(tmp_path, export, drawn):
    run = fields() | {"name": "bert", "num_labels": 0}
    export(tmp_path / "one", "mlm", run, drawn("mlm", fields()))
    export(tmp_path / "other", "mlm", fields())
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_features_need_no_pooler(tmp_path, export):
    export(tmp_path / "out", "features", fields(pooler=False))
    assert open_folder(tmp_path / "out").model["pooler"] is False


@pytest.mark.parametrize(("asked", "written"), [(0, 16), (9, 9)])
def test_the_tokenizer_knows_the_longest_text(tmp_path, export, asked, written):
    export(tmp_path / "out", "mlm", fields(), max_length=asked)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == written and settings["tokenizer_class"] == "BertTokenizer"
    assert settings["mask_token"] == "[MASK]"


# ---- what is refused


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("norm", "pre", "Train with norm=post to export."),
        ("position", "sinusoidal", "Train with position=learned or rope to export."),
        ("layer_scale", 0.1, "Train with layer_scale=0.0 to export."),
    ],
)
def test_a_model_that_transformers_has_not_is_refused(tmp_path, export, option, value, mend):
    with pytest.raises(UserError) as raised:
        export(tmp_path / "out", "mlm", fields(**{option: value}))
    assert (raised.value.field, raised.value.mend) == (f"config.model.{option}", mend)
    assert str(value) in raised.value.value and not (tmp_path / "out").exists()


def test_a_sentencepiece_model_goes_out_as_a_tokenizer_json(tmp_path, export):
    class Source(list):
        name, fingerprint = "words", "words of the export's test"

    texts = [{"text": f"{a}{b} {b}{c}{a} {c}."} for a in "aeiou" for b in "bdfgk" for c in "lmnrs"]
    tokenizer = make_tokenizer("unigram:512", Source(texts), lambda line: None)
    export(tmp_path / "out", "mlm", fields(vocab_size=512), tokenizer=tokenizer)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    found = open_folder(tmp_path / "out").tokenizer
    assert found.vocabulary_hash == tokenizer.vocabulary_hash
    assert found.encode_batch(["ab la é"])[0].tolist() == tokenizer.encode_batch(["ab la é"])[0].tolist()


def test_a_folder_that_is_taken_is_left_alone(tmp_path, export):
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken" / "note", tmp_path / "file"):
        path.write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError) as raised:
            export(target, "mlm", fields())
        assert raised.value.field == "--to" and str(target) in raised.value.value
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["note"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_and_one_that_is_not_there_are_filled(tmp_path, export):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new" / "below"):
        export(target, "mlm", fields())
        names = {path.name for path in target.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
        assert list(target.parent.glob(".*")) == []
    assert target.stat().st_mode == target.parent.stat().st_mode, "it is no more private than any folder"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
def test_there_is_never_half_a_folder(tmp_path, export, monkeypatch, error):
    def fail(path, tensors):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(folders, "write_tensors", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        export(tmp_path / "below" / "out", "mlm", fields())
    assert list((tmp_path / "below").iterdir()) == []
    if isinstance(error, OSError):
        assert raised.value.field == "--to" and "No space left" in raised.value.value
