import json

import numpy as np
import pytest
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from data.labels import any_of, label_order, one_of, read_labels, read_numbers
from data.sources import open_source, split_holdout
from errors import UserError


def write(path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.fixture
def jsonl(tmp_path):
    """A source of records with these labels; a label of ... is left out."""

    def make(*labels):
        records = [{"text": f"text {i}"} | ({} if label is ... else {"label": label}) for i, label in enumerate(labels)]
        path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(record) for record in records))
        return open_source(f"jsonl:{path}")

    return make


def mistake(call, *arguments) -> UserError:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) <= 3
    return caught.value


# ---- reading


def test_a_label_is_what_stands_in_the_file_without_space_around_it(tmp_path):
    content = 'note,text,label\nx,one, good \ny,"two\nlines",1.50\nz,three,"a, b"\nz,four,01\n'
    source = open_source(f"csv:{write(tmp_path / 'a.csv', content)}")
    assert read_labels(source, "label") == [("good",), ("1.50",), ("a, b",), ("01",)]
    assert read_labels(source, "note") == [("x",), ("y",), ("z",), ("z",)]


def test_numbers_and_booleans_of_json_are_their_json_text(jsonl):
    source = jsonl(1, True, 1.5, "1", False, -3, "é ", 1.0)
    found = ["1", "true", "1.5", "1", "false", "-3", "é", "1.0"]
    assert read_labels(source, "label") == [(label,) for label in found]


def test_several_labels_are_a_json_list_or_stand_between_separators(jsonl, tmp_path):
    source = jsonl(["b", " a", "b"], [], "b|a", "", " ", [1, True], 7, "a,b|c|")
    expected = [("b", "a"), (), ("b", "a"), (), (), ("1", "true"), ("7",), ("a,b", "c")]
    assert read_labels(source, "label", "|") == expected
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\tb; a\ny\t\n")
    assert read_labels(open_source(f"tsv:{path}"), "label", ";") == [("b", "a"), ()]


def test_numbers_are_read_from_texts_and_from_json(jsonl):
    found = read_numbers(jsonl(1, "2.5", -0.1, " 1e-3 ", 0), "label")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1, 2.5, -0.1, 1e-3, 0], np.float32))


def test_each_record_is_read_once_and_equal_labels_are_held_once():
    class Counting:
        name = "counting"

        def __init__(self):
            self.reads = 0

        def __len__(self):
            return 1_000

        def __getitem__(self, index):
            self.reads += 1
            return {"text": "x" * 100, "label": f"label {index % 3}", "stars": index}

    source = Counting()
    found = read_labels(source, "label")
    assert source.reads == 1_000 and len({id(labels) for labels in found}) == 3
    read_numbers(source, "stars")
    assert source.reads == 2_000


@pytest.mark.parametrize("read", [read_labels, read_numbers])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, read):
    path = write(tmp_path / "a.tsv", "sentence\tstars\tnote\na\t1\tx\n")
    error = mistake(read, open_source(f"tsv:{path}", text="note"), "label")
    assert (error.field, error.value) == ("config.data.label", "'label'")
    assert error.mend == f"columns of tsv:{path} beside the text: sentence, stars, note"
    error = mistake(read, open_source(f"text:{path}"), "label")
    assert error.mend.endswith("beside the text: none")


def test_the_text_is_no_label_whatever_its_column_is_called(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\ttext\na\tpositive\n")
    assert "'text' is the text" in mistake(read_labels, open_source(f"tsv:{path}", text="sentence"), "text").value


def test_of_two_columns_with_the_label_s_name_neither_is_taken(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,id,label\na,x,1,y\n")
    assert "beside the text: id" in mistake(read_labels, open_source(f"csv:{path}"), "label").mend


@pytest.mark.parametrize(
    ("label", "separator", "said"),
    [
        (..., "", "has no 'label'"),
        (..., "|", "has no 'label'"),
        (None, "", "'label' is null"),
        (None, "|", "'label' is null"),
        (["a", None], "|", "'label' is null"),
        (float("nan"), "", "'label' is NaN"),
        ("", "", "'label' is empty"),
        (" \t", "", "'label' is empty"),
        (["a", ""], "|", "'label' is empty"),
        (["a"], "", "holds a list, not a label"),
        ({"a": 1}, "", "holds a dict, not a label"),
        ([["a"]], "|", "holds a list, not a label"),
        ("\ud800", "", "lone surrogate"),
    ],
)
def test_what_is_no_label_is_named_by_file_and_line(jsonl, tmp_path, label, separator, said):
    error = mistake(read_labels, jsonl("a", "b", label, "a"), "label", separator)
    assert error.field == f"{tmp_path}/a.jsonl:3" and said in error.value


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("good", "is 'good', no finite number"),
        ("1,5", "is '1,5', no finite number"),
        ("nan", "is 'nan', no finite number"),
        ("-inf", "is '-inf', no finite number"),
        ("1e39", "is '1e39', no finite number"),  # infinite in float32
        (10**400, "no finite number"),
        (float("nan"), "is NaN"),
        (float("inf"), "is Infinity"),
        (True, "is 'true', no finite number"),
        (None, "is null"),
        ("", "is empty"),
        ([1], "holds a list"),
        (..., "has no 'label'"),
    ],
)
def test_what_is_no_number_is_named_by_file_and_line_and_value(jsonl, tmp_path, label, said):
    error = mistake(read_numbers, jsonl(1, label, 2), "label")
    assert error.field == f"{tmp_path}/a.jsonl:2" and said in error.value


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("read", [read_labels, read_numbers])
def test_a_row_with_the_wrong_number_of_fields_is_found_when_labels_are_read(tmp_path, kind, read):
    rows = ["text,label", "a,1", "b,1,2"]
    path = write(tmp_path / "a", "\n".join(rows).replace(",", "," if kind == "csv" else "\t"))
    error = mistake(read, open_source(f"{kind}:{path}"), "label")
    assert error.field == f"{path}:3" and error.value == "3 fields, but the header has 2"


# ---- order


def ones(*labels: str) -> list[tuple[str, ...]]:
    return [(label,) for label in labels]


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (ones("b", "a", "b"), ("a", "b")),
        (ones("10", "9", "-1", "2.5", "9"), ("-1", "2.5", "9", "10")),
        (ones("10", "9", "x"), ("10", "9", "x")),
        (ones("1", "nan", "02"), ("02", "1", "nan")),  # not a number is no number
        (ones("é", "z", "Z", "\ue000", "\U00010000"), ("Z", "z", "é", "\ue000", "\U00010000")),
        ([("b", "a"), (), ("c",)], ("a", "b", "c")),
        ([("a",), ()], ("a",)),
    ],
)
def test_labels_are_ordered_as_numbers_if_all_are_and_else_by_code_points(found, order):
    assert label_order(found) == label_order(found[::-1]) == label_order(found, count=len(order)) == order


def test_a_given_order_is_taken():
    assert label_order(ones("a", "b", "c"), ("c", "a", "b")) == ("c", "a", "b")


@pytest.mark.parametrize(
    ("found", "given", "count", "field", "said"),
    [
        (ones("a", "b", "positiv"), ("a", "b"), 0, "config.data.labels", "'positiv' is not among them"),
        (ones("a", "b"), ("a", "b", "c"), 0, "config.data.labels", "'c' is an empty class"),
        (ones("a", "a"), ("a", "b"), 2, "config.data.labels", "'b' is an empty class"),
        (ones("a", "b"), ("a", "b", "a"), 0, "config.data.labels", "one of them twice"),
        (ones("a", "b", "c"), (), 2, "config.model.num_labels", "3 labels: 'c' is out of range"),
        (ones("a", "b"), (), 3, "config.model.num_labels", "2 labels: an empty class"),
        (ones("a", "a"), (), 2, "config.model.num_labels", "1 labels: an empty class"),
        (ones("a", "b"), ("b", "a"), 3, "config.model.num_labels", "an empty class"),
        (ones("a", "a"), (), 0, "config.data.label", "all training examples have the same: 'a'"),
        ([("a", "b"), ("a", "b")], (), 0, "config.data.label", "the same: 'a', 'b'"),
        ([(), ()], (), 0, "config.data.label", "the same: no label"),
    ],
)
def test_labels_that_are_not_those_expected_are_refused(found, given, count, field, said):
    error = mistake(label_order, found, given, count)
    assert error.field == field and said in str(error.value)


def test_the_nearest_label_is_offered_and_many_are_not_all_listed():
    found = ones(*(f"class {i}" for i in range(5_000)))
    error = mistake(label_order, found, ("clas 7",))
    assert "Did you mean 'class 7'?" in error.mend and error.mend.endswith("… (5000).") and len(str(error)) < 400
    assert len(str(mistake(label_order, ones("a", "b", "a whole text " * 1_000), ("a", "b")))) < 400


# ---- targets


def test_targets_are_those_of_scikit_learn(jsonl):
    draw = np.random.default_rng(0)
    names = np.array(["neutral", "bad", "good", "Good"])
    labels = names[draw.integers(0, 4, 200)].tolist()
    source = jsonl(*labels)
    found = read_labels(source, "label")
    targets = one_of(found, label_order(found), source)
    encoder = LabelEncoder().fit(labels)
    assert label_order(found) == tuple(encoder.classes_) and targets.dtype == np.int32
    np.testing.assert_array_equal(targets, encoder.transform(labels))

    several = [draw.permutation(names)[: draw.integers(0, 5)].tolist() for _ in range(200)]
    source = jsonl(*several)
    found = read_labels(source, "label", ",")
    targets = any_of(found, label_order(found), source)
    assert targets.dtype == np.float32 and targets.shape == (200, 4) and not targets.all(1).all()
    np.testing.assert_array_equal(targets, MultiLabelBinarizer().fit_transform(several))
    turned = any_of(found, label_order(found)[::-1], source)
    np.testing.assert_array_equal(turned, targets[:, ::-1])


def test_a_source_without_any_label_has_targets_of_zero(jsonl):
    source = jsonl([], "", [])
    np.testing.assert_array_equal(any_of(read_labels(source, "label", ","), ("a", "b"), source), np.zeros((3, 2)))


@pytest.mark.parametrize(("make", "separator"), [(one_of, ""), (any_of, ",")])
def test_a_label_that_training_never_had_is_named_by_file_and_line_with_the_nearest(jsonl, tmp_path, make, separator):
    source = jsonl("good", "bad", "goood")
    found = read_labels(source, "label", separator)
    error = mistake(make, found, ("bad", "good"), source)
    assert error.field == f"{tmp_path}/a.jsonl:3" and "'goood', which no training example has" in error.value
    assert error.mend == "Did you mean 'good'? Known labels: 'bad', 'good'."


def test_the_line_is_right_in_what_was_held_out(tmp_path):
    lines = ["text,label", *(f'"text\n{i}",{"good" if i < 8 else "odd"}' for i in range(10))]  # two lines each
    source = open_source(f"csv:{write(tmp_path / 'a.csv', chr(10).join(lines))}")
    _, held_out = split_holdout(source, "tail", 0.3)
    found = read_labels(held_out, "label")
    assert found == ones("good", "odd", "odd")
    assert mistake(one_of, found, ("bad", "good"), held_out).field == f"{tmp_path}/a.csv:18"
