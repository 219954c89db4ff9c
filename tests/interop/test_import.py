"""Folders of transformers': their numbers through our models, the forms they come in, and what is refused."""

import json
import math
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from errors import UserError
from interop.bert import MODULES
from interop.family import ACTIVATIONS
from interop.folder import open_folder
from models import layers


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


# ---- the numbers


def test_a_bert_computes_what_it_computes_in_transformers(bert, build):
    found = open_folder(bert.write())
    assert (found.name, found.heads, found.labels, found.problem) == ("bert", ("mlm",), (), "")
    assert found.left_over == () and found.model["pooler"]
    model, batch, text = build("mlm", found.model, found.params), bert.batch(), bert.golden["attention_mask"] > 0
    states = model.hidden_states(batch)
    for ours, theirs in zip(states, bert.golden["hidden_states"], strict=True):
        close(np.asarray(ours)[text], theirs[text])
    close(model.pooled(states[-1][:, 0]), bert.golden["pooler_output"])
    close(np.asarray(model(batch, batch["positions"], 96))[text], bert.golden["logits"][text])


def test_a_roformer_computes_what_it_computes_in_transformers(roformer, build):
    found = open_folder(roformer.write())
    assert (found.name, found.heads) == ("bert", ("mlm", "classification"))
    assert (found.labels, found.problem) == (("bad", "middling", "good"), "multiclass")
    assert found.left_over == () and found.model["position"] == "rope" and found.model["pooler"]
    model, batch, text = (
        build("mlm", found.model, found.params),
        roformer.batch(),
        roformer.golden["attention_mask"] > 0,
    )
    states = [np.asarray(state) for state in model.hidden_states(batch)]
    for ours, theirs in zip(states, roformer.golden["hidden_states"], strict=True):
        close(ours[text], theirs[text])
    close(
        np.asarray(model(batch, batch["positions"], 48))[text],
        roformer.golden["mlm_logits"][text],
    )
    inner = states[-1][:, 0] @ found.params["pooler/kernel"] + found.params["pooler/bias"]
    active = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    logits = active @ found.params["classifier/kernel"] + found.params["classifier/bias"]
    close(logits, roformer.golden["classification_logits"])


def test_every_name_for_an_activation_is_its_formula():
    x = np.linspace(-6, 6, 241)
    erf, tanh = np.vectorize(math.erf), np.tanh
    cubic = 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    formulas = {  # as transformers' activations.py has them
        "gelu": x * 0.5 * (1 + erf(x / math.sqrt(2))),
        "gelu_new": cubic,
        "gelu_pytorch_tanh": cubic,
        "gelu_fast": 0.5 * x * (1 + tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
        "swish": x / (1 + np.exp(-x)),
    }
    assert formulas.keys() == ACTIVATIONS.keys()
    for theirs, ours in ACTIVATIONS.items():
        np.testing.assert_allclose(layers.ACTIVATIONS[ours](x.astype(np.float32)), formulas[theirs], atol=2e-6)


# ---- the forms that folders come in


def same(found, other) -> None:
    assert found.model == other.model and found.params.keys() == other.params.keys()
    for path, array in found.params.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable
        np.testing.assert_array_equal(array, other.params[path], err_msg=path)


def renamed(weights, change):
    return {change(name): array for name, array in weights.items()}


def old(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("change", [lambda name: name.removeprefix("bert."), old], ids=["no prefix", "gamma and beta"])
def test_other_names_of_the_same_tensors_are_known(bert, change):
    found = open_folder(bert.write())
    bert.weights = renamed(bert.weights, change)
    again = open_folder(bert.write())
    same(again, found)
    assert again.left_over == ()
    assert set(again.key_map.values()) == set(bert.weights), "the map names what lies in the folder"
    assert again.key_map["encoder/layers/1/attention/query/kernel"].endswith(
        "encoder.layer.1.attention.self.query.weight"
    )


def test_no_pooler_is_no_mistake_without_a_classification_head(bert):
    bert.weights = {name: array for name, array in bert.weights.items() if "pooler" not in name}
    found = open_folder(bert.write())
    assert found.model["pooler"] is False and not any(path.startswith("pooler") for path in found.params)


def test_the_decoder_may_be_written_out_or_not(bert):
    found = open_folder(bert.write())
    plain, bias = bert.weights, bert.weights["cls.predictions.bias"]
    tied = {"cls.predictions.decoder.weight": plain["bert.embeddings.word_embeddings.weight"]}
    one, other = "cls.predictions.bias", "cls.predictions.decoder.bias"
    rest = {name: array for name, array in plain.items() if name != one}
    for bert.weights in (plain | tied, plain | tied | {other: bias}, rest | tied | {other: bias}, rest | {other: bias}):
        again = open_folder(bert.write())
        same(again, found)
        assert again.left_over == () and again.key_map["mlm_head/bias"] == (one if one in bert.weights else other)


@pytest.mark.parametrize("name", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_a_decoder_of_its_own_is_refused_by_name(bert, name):
    tied = {"weight": "bert.embeddings.word_embeddings.weight", "bias": "cls.predictions.bias"}[name.split(".")[-1]]
    for other in (bert.weights[tied] + 1e-3, bert.weights[tied][:-1]):
        bert.weights[name] = other
        with pytest.raises(UserError, match=rf"{name} is not the same as {tied}"):
            open_folder(bert.write())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_widened(bert, kind):
    found = open_folder(bert.write())
    if kind == "float16":
        bert.weights = {name: array.astype(np.float16) for name, array in bert.weights.items()}
        bert.write()
    else:  # the library writes none from NumPy
        header, data = {}, b""
        for name, array in bert.weights.items():
            part = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16).tobytes()
            offsets = [len(data), len(data) + len(part)]
            header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": offsets}
            data += part
        text = json.dumps(header).encode()
        (bert.folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    again = open_folder(bert.folder)
    for name, array in again.params.items():
        np.testing.assert_allclose(array, found.params[name], rtol=2**-7, atol=1e-6)
        assert (array != found.params[name]).any()


def test_shards_are_one_model(bert):
    found = open_folder(bert.write())
    (bert.folder / "model.safetensors").unlink()
    names, index = sorted(bert.weights), {}
    for i in range(3):
        shard = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: bert.weights[name] for name in names[i::3]}, bert.folder / shard)
        index |= dict.fromkeys(names[i::3], shard)
    (bert.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    same(open_folder(bert.folder), found)


def test_what_has_no_place_is_left_over_by_name(bert):
    bert.weights |= {
        "bert.embeddings.position_ids": np.arange(24)[None],
        "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
        "classifier.weight": np.ones((5, 32), np.float32),  # of tokens: the architecture is another
        "classifier.bias": np.ones(5, np.float32),
    }
    bert.about["architectures"] = ["BertForPreTraining"]
    found = open_folder(bert.write())
    assert found.heads == ("mlm",)
    assert set(found.left_over) == set(bert.weights) - set(found.key_map.values()) and len(found.left_over) == 4


def test_defaults_are_those_of_transformers(bert):
    for option in ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        del bert.about[option]
    model = open_folder(bert.write()).model
    assert (model["activation"], model["dropout"], model["attention_dropout"]) == ("gelu", 0.1, 0.1)
    assert (model["layer_norm_epsilon"], model["initializer_range"], model["type_vocab_size"]) == (1e-12, 0.02, 2)


def test_no_module_stands_twice_in_the_key_map():
    assert len(set(MODULES.values())) == len(MODULES)


# ---- classification heads


def test_a_classification_head_brings_its_labels(classifier):
    found = open_folder(classifier.write())
    assert (found.heads, found.labels, found.problem) == (("classification",), ("no", "yes"), "multiclass")
    np.testing.assert_array_equal(found.params["classifier/kernel"], classifier.weights["classifier.weight"].T)


@pytest.mark.parametrize(
    ("about", "outputs", "labels", "problem"),
    [
        ({"problem_type": "multi_label_classification"}, 2, ("no", "yes"), "multilabel"),
        ({"problem_type": "single_label_classification"}, 2, ("no", "yes"), "multiclass"),
        ({"problem_type": "regression"}, 2, (), "regression"),
        ({"id2label": {"0": "LABEL_0"}}, 1, (), "regression"),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, 3, ("a", "b", "c"), "multiclass"),
        ({"id2label": {str(i): f"l{i}" for i in range(12)}}, 12, tuple(f"l{i}" for i in range(12)), "multiclass"),
        ({"id2label": None}, 2, (), "multiclass"),
        ({"architectures": None}, 2, ("no", "yes"), "multiclass"),
    ],
)
def test_the_problem_follows_from_config_json(classifier, about, outputs, labels, problem):
    classifier.about |= about
    classifier.weights["classifier.weight"] = np.ones((outputs, 32), np.float32)
    classifier.weights["classifier.bias"] = np.ones(outputs, np.float32)
    found = open_folder(classifier.write())
    assert (found.labels, found.problem) == (labels, problem) and found.params["classifier/bias"].shape == (outputs,)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"classifier.bias is \[2\], by config.json \[3\]"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"zero": "a", "one": "b"}}, "id2label"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label"),
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(classifier, about, said):
    classifier.about |= about
    refused(classifier, said)


def test_a_classification_head_needs_its_pooler(classifier):
    del classifier.weights["bert.pooler.dense.weight"], classifier.weights["bert.pooler.dense.bias"]
    refused(classifier, "has no bert.pooler.dense")


# ---- what is refused


def refused(foreign, said: str) -> UserError:
    foreign.write()
    with pytest.raises(UserError, match=said) as raised:
        open_folder(foreign.folder, "--from")
    assert raised.value.field == "--from" and str(foreign.folder) in raised.value.value
    assert len(str(raised.value).splitlines()) <= 3
    return raised.value


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ({"hidden_act": 3}, "hidden_act is 3"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5 heads do not divide"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps is nan"),
        ({"num_hidden_layers": 3}, "has no bert.encoder.layer.2.output.dense.weight, the last of 3 layers"),
        ({"num_hidden_layers": 10**9}, "the last of 1000000000 layers"),
        ({"hidden_size": 10**12}, r"is \[32\], by config.json \[1000000000000\]"),
        ({"intermediate_size": 48}, r"output.dense.weight is \[32, 64\], by config.json \[32, 48\]"),
        ({"max_position_embeddings": 512}, r"position_embeddings.weight is \[24, 32\], by config.json \[512, 32\]"),
    ],
)
def test_what_is_not_computed_and_what_does_not_fit_is_refused_by_name(bert, about, said):
    bert.about |= about
    refused(bert, said)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"embedding_size": 16}, "embedding_size is 16"),
        ({"rotary_value": True}, "rotary_value is True"),
        ({"is_decoder": True}, "is_decoder is True"),
    ],
)
def test_a_roformer_of_another_make_is_refused_by_name(roformer, about, said):
    roformer.about |= about
    refused(roformer, said)


def test_a_roformer_with_its_size_written_out_is_taken(roformer):
    roformer.about |= {"embedding_size": 32, "rotary_value": False, "is_decoder": None}
    open_folder(roformer.write())


def test_a_roformer_with_other_positions_is_refused(roformer):
    roformer.weights["roformer.encoder.embed_positions.weight"] = np.ones((24, 8), np.float32)
    refused(roformer, "embed_positions.weight holds other positions")


def test_the_supported_types_are_listed(bert):
    bert.about["model_type"] = "t5"
    assert "bert, roformer" in refused(bert, "t5").mend


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_a_broken_config_json_is_refused(bert, content):
    bert.write()
    (bert.folder / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"config\.json"):
        open_folder(bert.folder)


def test_a_folder_without_config_json_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"config\.json \(No such file or directory\)") as raised:
            open_folder(folder)
        assert raised.value.field == "config.init_from"


def test_weights_as_pickle_alone_are_refused_unopened(bert):
    (bert.write() / "model.safetensors").unlink()
    (bert.folder / "pytorch_model.bin").write_bytes(pickle.dumps(bert.weights))
    with pytest.raises(UserError, match="pickle"):
        open_folder(bert.folder)


def test_a_missing_tensor_is_named(bert):
    del bert.weights["bert.encoder.layer.0.attention.self.key.bias"]
    refused(bert, "has no bert.encoder.layer.0.attention.self.key.bias\n")
    del bert.weights["cls.predictions.transform.dense.bias"]
    refused(bert, "nor 1 more")


def test_a_tensor_that_is_there_twice_is_refused(bert):
    bert.weights["embeddings.LayerNorm.gamma"] = bert.weights["bert.embeddings.LayerNorm.weight"]
    refused(bert, "embeddings.LayerNorm.gamma.*which are one")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bert, value):
    weights = bert.weights["bert.encoder.layer.1.output.dense.weight"] = bert.weights[
        "bert.encoder.layer.1.output.dense.weight"
    ].copy()
    weights[3, 4] = value
    refused(bert, "bert.encoder.layer.1.output.dense.weight has numbers that are not finite")


def test_whole_numbers_are_no_weights(bert):
    bert.weights["bert.pooler.dense.weight"] = np.ones((32, 32), np.int8)
    refused(bert, "bert.pooler.dense.weight is of type I8")


# ---- the tokenizer


@pytest.mark.parametrize(
    ("pieces", "fits"), [(96, True), (95, True), (97, False), (60, True), (8, True)], ids=lambda value: str(value)
)
def test_an_embedding_may_have_rows_to_spare_for_rounding_alone(bert, pieces, fits):
    bert.write()
    words = (bert.folder / "vocab.txt").read_text().splitlines()
    words += ["more"] * max(0, pieces - 96)
    (bert.folder / "vocab.txt").write_text("\n".join(words[:pieces]) + "\n")
    if fits:
        assert open_folder(bert.folder).tokenizer.vocab_size == pieces
    else:
        with pytest.raises(UserError, match="vocab_size is 96, but the tokenizer has 97 pieces"):
            open_folder(bert.folder)


def test_an_embedding_of_another_tokenizer_is_refused(bert):
    word = "bert.embeddings.word_embeddings.weight"
    for rows, fits in ((96 + 127, True), (96 + 128, False)):
        bert.weights[word] = np.ones((rows, 32), np.float32)
        bert.weights["cls.predictions.bias"] = np.ones(rows, np.float32)
        bert.about["vocab_size"] = 96
        bert.write()
        (bert.folder / "config.json").write_text(json.dumps(bert.about | {"vocab_size": rows}))
        if fits:
            assert open_folder(bert.folder).model["vocab_size"] == rows
        else:
            with pytest.raises(UserError, match="vocab_size is 224, but the tokenizer has 96 pieces"):
                open_folder(bert.folder)


def test_the_settings_of_a_vocab_txt_reach_the_tokenizer(bert):
    bert.write()
    settings = bert.folder / "tokenizer_config.json"
    for lower, unknown in ((True, False), (False, True)):
        settings.write_text(json.dumps({"do_lower_case": lower}))
        tokenizer = open_folder(bert.folder).tokenizer
        assert (tokenizer.unk_id in tokenizer.encode_batch(["W7"])[0]) == unknown


@pytest.mark.parametrize(
    ("settings", "files", "said"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, (), "BertJapaneseTokenizer and no tokenizer.json"),
        ({"tokenizer_class": "RoFormerTokenizer"}, (), "RoFormerTokenizer, which cuts words with jieba"),
        ({}, ("added_tokens.json",), "not in its vocab.txt"),
        ({"added_tokens_decoder": {"0": {}, "96": {"content": "more"}}}, (), "not in its vocab.txt"),
    ],
)
def test_a_tokenizer_that_vocab_txt_does_not_tell_all_of_is_refused(bert, settings, files, said):
    bert.write()
    (bert.folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in files:
        (bert.folder / name).write_text('{"more": 96}')
    with pytest.raises(UserError, match=said):
        open_folder(bert.folder)


def test_added_tokens_that_vocab_txt_has_are_no_hindrance(bert):
    bert.write()
    (bert.folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"0": {}, "4": {}}}))
    open_folder(bert.folder)


def test_a_roformer_that_names_no_tokenizer_has_the_one_of_jieba(roformer):
    roformer.write()
    (roformer.folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="jieba"):
        open_folder(roformer.folder)


def test_opening_leaves_the_folder_as_it_is(bert):
    before = load_file(bert.write() / "model.safetensors")
    found = open_folder(bert.folder)
    for array in found.params.values():
        array[...] = 0
    after = load_file(bert.folder / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
