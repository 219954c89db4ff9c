"""Foreign folders of any content: headers of weights, the index of shards, config.json and what stands beside it."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from data.tokenizer import SPECIALS
from errors import UserError
from interop.folder import FAMILIES, open_folder
from interop.pictures import read_normalization
from interop.tensors import FLOATS, Stored, find_tensors, read_header, write_tensors

WHOLE = save(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16), "c": np.zeros((), np.int64)}
)
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def refused(error: UserError) -> None:
    assert error.field == "--from" and len(str(error).splitlines()) <= 3


def check_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file, if it is taken: each within the file, and what the library itself reads of it."""
    size = path.stat().st_size
    try:
        found = read_header(path, "--from")
    except UserError as error:
        refused(error)
        return {}
    for name, stored in found.items():
        assert isinstance(name, str) and isinstance(stored.dtype, str)
        assert all(type(side) is int and 0 <= side < 2**63 for side in stored.shape)
        assert 8 <= stored.offset <= size
        if stored.dtype in FLOATS:
            assert stored.offset + math.prod(stored.shape) * WIDTHS[stored.dtype] <= size
            array = stored.read()
            assert array.dtype == np.float32 and array.shape == stored.shape
    if all(stored.dtype in ("F64", "F32", "F16") for stored in found.values()):
        for name, array in load(path.read_bytes()).items():
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(found[name].read(), array.astype(np.float32))
    return found


def raw(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@given(st.binary(max_size=80))
def test_a_file_of_any_bytes_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    check_header(tmp_path / "model.safetensors")


@st.composite
def mutated(draw):
    content = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        change = draw(st.sampled_from(["flip", "cut", "insert", "write", "end"]))
        if change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del content[place : place + draw(st.integers(1, 9))]
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=9))
        elif change == "write":
            some = draw(
                st.sampled_from([b"0", b"9", b"null", b"-1", b"{", b"]", b'"', b"F64", b"F16", b"99999999999999999999"])
            )
            content[place : place + len(some)] = some
        else:
            del content[place:]
    return bytes(content)


@given(mutated())
def test_a_damaged_file_gives_what_the_library_reads_or_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    check_header(tmp_path / "model.safetensors")


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, 1e300, True, None, "4"]),
)
DTYPES = st.one_of(
    st.sampled_from([*FLOATS, "I64", "U8", "BOOL", "F8_E4M3", "F4", "f32", "", None, 3]),
    st.just({"F32": None}),
    st.just(["F32"]),
)
SHAPES = st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS, st.none())
OFFSETS = st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), st.lists(NUMBERS, max_size=3), NUMBERS)
ABOUT = st.one_of(
    st.builds(
        lambda *parts: dict(zip(("dtype", "shape", "data_offsets"), parts, strict=True)), DTYPES, SHAPES, OFFSETS
    ),
    st.builds(lambda *parts: list(parts), DTYPES, SHAPES, OFFSETS),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), st.one_of(DTYPES, SHAPES), max_size=4),
    NUMBERS,
)


@st.composite
def fitting(draw):
    """A header whose ranges cover the data as they should, but for what chance adds: zeros in shapes, names, extras."""
    header, end = {}, 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "é", "", "__metadata", "c.d"]), unique=True, max_size=4)):
        dtype = draw(st.sampled_from(list(WIDTHS)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        if 0 in shape and draw(st.booleans()):
            shape.append(draw(st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1])))
        size = math.prod(shape) * WIDTHS[dtype]
        about = [draw(st.sampled_from([dtype, {dtype: None}])), shape, [end, end + size]]
        named = dict(zip(("dtype", "shape", "data_offsets"), about, strict=True))
        header[name] = draw(st.sampled_from([named, named | {"more": [1]}, about]))
        end += size
    return header, draw(st.binary(min_size=end, max_size=end))


@given(
    st.one_of(
        fitting(),
        st.tuples(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ABOUT), st.binary(max_size=40)),
    ),
    st.one_of(st.none(), NUMBERS.filter(lambda n: type(n) is int and 0 <= n < 2**64)),
)
@example(({"a": ["F32", [2], [0, 8]]}, bytes(8)), None)
@example(({"a": {"dtype": {"F32": None}, "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), None)
@example(({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}, b""), None)
@example(({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, b""), None)
@example(({"__metadata__": None}, b""), None)
def test_a_header_of_any_content_is_read_right_or_refused(tmp_path, file, length):
    header, data = file
    (tmp_path / "model.safetensors").write_bytes(raw(json.dumps(header).encode(), data, length))
    check_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "header", [b'{"a":1,"a":2}', b"[" * 100_000, b'{"\\ud800": 1}', b"{}" + b" " * 100_000, b"null", b"\xff"]
)
def test_headers_that_parsers_read_in_several_ways_are_read_or_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(raw(header, b""))
    check_header(tmp_path / "model.safetensors")


def test_of_two_tensors_with_one_name_the_library_and_we_read_the_same(tmp_path):
    one, two = ({"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]} for n in (1, 2))
    for first, second, size in ((one, two, 8), (two, one, 8), (one, two, 4), (two, one, 4)):
        header = f'{{"a": {json.dumps(first)}, "a": {json.dumps(second)}}}'.encode()
        (tmp_path / "model.safetensors").write_bytes(raw(header, bytes(size)))
        check_header(tmp_path / "model.safetensors")


def test_a_shape_of_more_sides_than_an_array_can_have_is_refused(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}
    (tmp_path / "model.safetensors").write_bytes(raw(json.dumps(header).encode(), bytes(4)))
    assert not check_header(tmp_path / "model.safetensors")


ARRAYS = st.lists(st.integers(0, 3), max_size=3).flatmap(
    lambda shape: st.lists(st.floats(width=32), min_size=math.prod(shape), max_size=math.prod(shape)).map(
        lambda values: np.array(values, np.float32).reshape(shape)
    )
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_what_is_written_comes_back(tmp_path, tensors):
    write_tensors(tmp_path / "model.safetensors", tensors)
    found = check_header(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name].read(), array)


# ---- shards

SHARDS = st.one_of(
    st.sampled_from(
        ["one.safetensors", "two.safetensors", "../one.safetensors", "", ".", "..", "/", "a" * 300, "a\0", "\ud800"]
    ),
    st.text(max_size=5),
    st.sampled_from([None, 3, 1.5, True, [], {}]),
)
INDICES = st.one_of(
    st.builds(
        lambda names: {"weight_map": names}, st.dictionaries(st.sampled_from(["a", "b", "c", "é"]), SHARDS, max_size=3)
    ),
    st.builds(lambda value: {"weight_map": value}, st.one_of(SHARDS, st.lists(SHARDS, max_size=2))),
    SHARDS,
)


@given(st.one_of(st.binary(max_size=40), INDICES.map(lambda index: json.dumps(index).encode())))
@example(b"[" * 100_000)
@example(json.dumps({"weight_map": {"a": "a" * 300}}).encode())
@example(json.dumps({"weight_map": {"a": "a\0"}}).encode())
def test_an_index_of_shards_of_any_content_is_followed_or_refused(tmp_path, content):
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(WHOLE)
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    try:
        found = find_tensors(tmp_path, "--from")
    except UserError as error:
        refused(error)
        return
    assert all(stored.path.parent == tmp_path for stored in found.values())


# ---- config.json

THINGS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from(
        [0, 2**31, 2**64, 10**400, -1, 12.0, 768.0, 0.0, 0.1, 1e400, -1e400, math.nan, "", "gelu", "12", "é"]
    ),
    st.sampled_from(
        [[], [1], [[]], [1, 2, 3, 4], [256.0, 512], {}, {"0": "a"}, {"0": "a", "1": "a"}, {"x": 1}, ["BertModel"]]
    ),
    st.floats(),
    st.text(max_size=4),
)


@st.composite
def configs(draw):
    """A family's config.json with any value for some of the options that are known of it."""
    family = draw(st.sampled_from(list(FAMILIES.values())))
    known = [option for option, _ in family.fields.values()]
    known += [*family.only, *family.equal, "architectures", "id2label", "problem_type", "tokenizer_class", "model_type"]
    about = {"model_type": family.model_type}
    for option, default in family.fields.values():
        if draw(st.booleans()):
            about[option] = list(default) if isinstance(default, tuple) else default
    return about | draw(st.dictionaries(st.sampled_from(known), THINGS, max_size=3))


@given(configs())
@example({"model_type": "bert", "num_hidden_layers": 12.0})
@example({"model_type": "gpt2", "n_inner": False})
@example({"model_type": "bert", "layer_norm_eps": 10**400})
@example({"model_type": "bert", "initializer_range": 10**400})
@example({"model_type": "bert", "layer_norm_eps": 1e300})
@example({"model_type": "marian", "scale_embedding": 0})
@example({"model_type": ["bert"]})
def test_the_options_of_a_config_json_are_of_their_kinds_or_refused(about):
    for family in FAMILIES.values():
        if family.model_type != about.get("model_type"):
            continue
        try:
            model = family.read_config(about, Path("config.json"), "--from")
        except UserError as error:
            refused(error)
            return
        for name, (_, default) in family.fields.items():
            if name != "activation":
                assert type(model[name]) in {float: (float, int)}.get(type(default), (type(default),)), name
                assert type(default) is not float or np.isfinite(np.float32(model[name]))
        hash(tuple(sorted(model.items())))


BERT = {
    "model_type": "bert",
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
BERT |= {
    "vocab_size": 6,
    "max_position_embeddings": 8,
    "hidden_act": "gelu",
    "architectures": ["BertForSequenceClassification"],
}


def bert_weights(labels: int) -> dict[str, np.ndarray]:
    """A whole BERT of width 4 with a classifier, by the names that are known of it."""
    family = FAMILIES["bert"]
    model = family.read_config(BERT, Path("config.json"), "--from") | {"pooler": True}
    draw = np.random.default_rng(0)
    shapes = family.shapes(model, "classification", labels)
    params = {path: draw.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return family.tensors(params, model)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_tensors(folder / "model.safetensors", bert_weights(2))
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, "a"]) + "\n")
    return folder


OPTIONS = ["architectures", "id2label", "problem_type", "tokenizer_class", *BERT, "layer_norm_eps", "is_decoder"]
HINTS = st.dictionaries(
    st.sampled_from(
        ["tokenizer_class", "do_lower_case", "strip_accents", "added_tokens_decoder", "tokenize_chinese_chars"]
    ),
    THINGS,
    max_size=3,
)


@given(
    st.dictionaries(st.sampled_from(OPTIONS), THINGS, max_size=2),
    st.one_of(st.just({}), HINTS, THINGS),
)
@example({"id2label": {"0": "a\ud800", "1": "b"}}, {})
@example({"id2label": {"9" * 5_000: "a", "1": "b"}}, {})
@example({"num_hidden_layers": 1.0}, {})
@example({"hidden_size": 2**64}, {})
@example({"vocab_size": 10**400}, {})
@example({"initializer_range": 10**400}, {})
@example({}, {"added_tokens_decoder": {"9" * 5_000: {}}})
@example({}, {"added_tokens_decoder": {"²": {}}})
def test_a_folder_with_any_config_is_opened_or_refused(bert, about, settings):
    (bert / "config.json").write_text(json.dumps(BERT | about))
    (bert / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        found = open_folder(bert, "--from")
    except UserError as error:
        refused(error)
        return
    assert found.params and all(np.isfinite(array).all() for array in found.params.values())
    for label in found.labels:
        label.encode("utf-8")


PREPROCESSOR = st.dictionaries(
    st.sampled_from(["rescale_factor", "do_rescale", "do_normalize", "image_mean", "image_std"]),
    st.one_of(THINGS, st.lists(THINGS, min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3)),
)


@given(PREPROCESSOR)
@example({"rescale_factor": 10**400})
@example({"image_mean": [10**400, 0, 0]})
@example({"image_std": [1e300, 1, 1]})
@example({"do_normalize": "no"})
def test_what_pictures_are_normalised_by_is_numbers_or_refused(about):
    try:
        means, deviations = read_normalization(about, Path("preprocessor_config.json"), ((0.5,) * 3,) * 2, 3, "--from")
    except UserError as error:
        refused(error)
        return
    numbers = np.array([means, deviations], np.float32)
    assert numbers.shape == (2, 3) and np.isfinite(numbers).all() and min(deviations) > 0


@given(st.sampled_from(["config.json", "tokenizer_config.json"]), st.binary(max_size=40))
@example("config.json", b"[" * 100_000)
@example("tokenizer_config.json", b"[" * 100_000)
@example("tokenizer_config.json", b"[]")
def test_a_folder_with_a_broken_file_is_refused(bert, name, content):
    (bert / "config.json").write_text(json.dumps(BERT))
    (bert / "tokenizer_config.json").write_text("{}")
    (bert / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_folder(bert, "--from")
    refused(caught.value)
