"""Sources of records: files of any bytes, and well-formed files of any content."""

import csv
import gzip
import io
import json
import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from data.cache import cache_root
from data.pictures import open_pictures
from data.sources import joined, open_source, sample, split_holdout
from errors import UserError

KINDS = ("text", "jsonl", "csv", "tsv")
DOCUMENTS = ("paragraph", "line", "file")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# What the formats are made of, so that chance comes near to a file of theirs.
CRUMBS = st.sampled_from(
    [b'"', b",", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"text", b"text,a", b"text\ta", b"x", b"\x00", b"\xff"]
    + [
        b'{"text": "a"}',
        b'{"text": 1}',
        b"{",
        b"}",
        b"[",
        b"1e999",
        b"\\ud800",
        b'{"text": "\\ud800"}',
        b"\xef\xbb\xbf",
    ]
    + ["é語\u2028\u0085".encode(), b"\xed\xa0\x80", b"text\n", b"null", b"-"]
)
BYTES = st.one_of(st.binary(max_size=60), st.lists(CRUMBS, max_size=14).map(b"".join))


def records(source) -> list[dict]:
    found = []
    for i in range(len(source)):
        found.append(source[i])
        assert source.where(i)
    return found


def records_or_refusal(spec: str, **options) -> list[dict]:
    """All records; none if the source was refused as it should be."""
    try:
        found = records(open_source(spec, **options))
    except UserError as error:
        assert len(str(error).splitlines()) <= 3
        return []
    assert found, "a source without records is refused"
    for record in found:
        assert isinstance(record["text"], str)
        record["text"].encode("utf-8")
    return found


def comparable(value):
    """NaN is not equal to itself."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


@given(st.sampled_from(KINDS), st.sampled_from(DOCUMENTS), st.booleans(), BYTES, BYTES)
@example("jsonl", "line", False, b'{"text": ' + b"[" * 100_000, b"")
@example("csv", "line", False, b"text\n\rx", b"\n")
@example("csv", "line", True, b'\xef\xbb\xbf\n"text"\n\n""', b"")
def test_files_of_any_bytes_give_records_or_a_refusal(tmp_path, kind, document, packed, content, more):
    for name, written in (("a", content), ("b", more)):
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(written) if packed else written)
    suffix = ".gz" * packed
    alone = records_or_refusal(f"{kind}:{tmp_path}/a{suffix}", document=document)
    after = records_or_refusal(f"{kind}:{tmp_path}/b{suffix}", document=document)
    if alone and after:
        both = records_or_refusal(f"{kind}:{tmp_path}/[ab]{suffix}", document=document)
        assert comparable(both) == comparable(alone + after)


@given(st.sampled_from(KINDS), BYTES, st.integers(0, 200), st.binary(max_size=9))
def test_a_gz_of_any_bytes_gives_records_or_a_refusal(tmp_path, kind, content, place, change):
    path = tmp_path / "a.gz"
    whole = gzip.compress(content, mtime=0)
    place %= len(whole)
    for written in (change, whole[:place], whole[:place] + change + whole[place + len(change) :], whole + change):
        path.write_bytes(written)
        records_or_refusal(f"{kind}:{path}", document="line")


@given(BYTES, BYTES, st.booleans(), st.integers(0, 100))
def test_parallel_files_of_any_bytes_give_records_or_a_refusal(tmp_path, content, other, packed, place):
    one, two = tmp_path / ("train.zh.gz" if packed else "train.zh"), tmp_path / "train.en"
    one.write_bytes(gzip.compress(content)[: 100 - place] if packed else content)
    two.write_bytes(other)
    for text in ("zh", "en"):
        records_or_refusal(f"parallel:{one},{two}", text=text)


WORDS = st.one_of(
    st.text(max_size=12),
    st.builds("{}{}".format, st.sampled_from([*(f"{kind}:" for kind in (*KINDS, "parallel"))]), st.text(max_size=12)),
    st.lists(st.sampled_from(["text", "jsonl", "parallel", ":", ",", "*", "~", "~x/", "/", ".", "[", "]", "?"])).map(
        "".join
    ),
)


@given(WORDS, st.sampled_from([*DOCUMENTS, "page"]))
@example("text:" + "a" * 300 + "*", "line")
@example("text:~no-such-user/a.txt", "line")
@example("parallel:~no-such-user/a.zh,b.en", "line")
@example("text:a\0", "line")
@example("text:a\0/*", "line")
@example("parallel:a\0.text,b.en", "line")
def test_a_source_of_any_name_is_opened_or_refused(tmp_path, monkeypatch, spec, document):
    monkeypatch.chdir(tmp_path)
    assume(spec not in ("pydocs", "cldr") and not spec.startswith(("tfds:", "text:/", "jsonl:/")))
    with pytest.raises(UserError) as refused:
        open_source(spec, document=document)
    assert len(str(refused.value).splitlines()) <= 3


@pytest.mark.parametrize("rest", ["~no-such-user/a", "a" * 300, "a\0", ""])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_pictures_of_any_name_are_refused_where_there_are_none(kind, rest):
    with pytest.raises(UserError) as refused:
        open_pictures(f"{kind}:{rest}")
    assert len(str(refused.value).splitlines()) <= 3


def test_a_cache_of_an_unknown_user_is_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROOTSTOCK_CACHE", "~no-such-user/cache")
    assert cache_root() == tmp_path / "~no-such-user" / "cache"


# ---- what is well-formed comes back

CELLS = st.lists(st.one_of(TEXT, CRUMBS.map(lambda crumb: crumb.decode("utf-8", "ignore"))), max_size=4).map("".join)


@st.composite
def tables(draw, cells):
    columns = draw(st.lists(cells.filter(lambda name: name != "text"), max_size=3, unique=True))
    columns.insert(draw(st.integers(0, len(columns))), "text")
    width = len(columns)
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=6))
    return columns, rows


def write(path, content: str, bom: bool, packed: bool):
    written = ("\ufeff" * bom + content).encode("utf-8")
    path = path.with_name(path.name + ".gz" * packed)
    path.write_bytes(gzip.compress(written) if packed else written)
    return path


@given(tables(CELLS), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.booleans())
@example((["text"], [[""]]), "\n", False, False, False)
@example((["\ufeff", "text"], [["", ""]]), "\n", False, False, False)
def test_a_csv_written_by_python_comes_back(tmp_path, table, newline, quoted, bom, packed):
    columns, rows = table
    out = io.StringIO(newline="")
    # Where rows end with "\n", Python's writer may leave "\r" unquoted, which its reader takes for the end of a row.
    bare = newline == "\n" and any("\r" in cell for row in [columns, *rows] for cell in row)
    style = csv.QUOTE_ALL if quoted or bare else csv.QUOTE_MINIMAL
    csv.writer(out, lineterminator=newline, quoting=style).writerows([columns, *rows])
    assume(bom or not out.getvalue().startswith("\ufeff"))  # which would be taken for the mark of the encoding
    path = write(tmp_path / "a.csv", out.getvalue(), bom, packed)
    assert records(open_source(f"csv:{path}")) == [dict(zip(columns, row, strict=True)) for row in rows]


PLAIN = TEXT.map(lambda text: text.translate(str.maketrans("\t\n\r", "   ")))


@given(tables(PLAIN), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_a_tsv_comes_back(tmp_path, table, newline, bom, packed):
    columns, rows = table
    lines = ["\t".join(row) for row in [columns, *rows]]
    assume(all(lines) and (bom or not lines[0].startswith("\ufeff")))  # an empty line is none
    path = write(tmp_path / "a.tsv", "".join(line + newline for line in lines), bom, packed)
    assert records(open_source(f"tsv:{path}")) == [dict(zip(columns, row, strict=True)) for row in rows]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(TEXT, values, max_size=3)),
    max_leaves=5,
)
OBJECTS = st.builds(lambda text, more: {**more, "text": text}, CELLS, st.dictionaries(TEXT, VALUES, max_size=3))


@given(st.lists(OBJECTS, min_size=1, max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_json_lines_written_by_python_come_back(tmp_path, objects, ascii_alone, newline, packed):
    lines = [json.dumps(value, ensure_ascii=ascii_alone) for value in objects]
    path = write(tmp_path / "a.jsonl", newline.join(lines), not ascii_alone, packed)
    assert comparable(records(open_source(f"jsonl:{path}"))) == comparable(objects)


LINES = TEXT.map(lambda text: text.replace("\n", " ").strip()).filter(lambda line: line and line[0] != "\ufeff")


@given(st.lists(LINES, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_text_comes_back_by_line_and_by_paragraph_and_whole(tmp_path, lines, newline, bom, packed):
    path = write(tmp_path / "a.txt", newline.join(lines), bom, packed)
    assert [r["text"] for r in records(open_source(f"text:{path}", document="line"))] == lines
    assert [r["text"] for r in records(open_source(f"text:{path}", document="file"))] == ["\n".join(lines)]
    path = write(tmp_path / "b.txt", (newline * 2).join(lines), bom, packed)
    assert [r["text"] for r in records(open_source(f"text:{path}", document="paragraph"))] == lines


@given(st.lists(st.tuples(LINES, LINES), min_size=1, max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_parallel_lines_come_back(tmp_path, pairs, bom, packed, ended):
    for side, language in enumerate(("zh", "en")):
        lines = [pair[side] for pair in pairs]
        write(tmp_path / f"a.{language}", "\n".join(lines) + "\n" * ended, bom, packed)
    suffix = ".gz" * packed
    source = open_source(f"parallel:{tmp_path}/a.zh{suffix},{tmp_path}/a.en{suffix}", text="en")
    assert records(source) == [{"zh": zh, "en": en, "text": en} for zh, en in pairs]


def test_the_text_of_parallel_files_is_its_languages_also_beside_a_file_called_text(tmp_path):
    (tmp_path / "a.zh").write_text("one")
    (tmp_path / "a.text").write_text("two")
    source = open_source(f"parallel:{tmp_path}/a.zh,{tmp_path}/a.text", text="zh")
    assert source[0] == {"zh": "one", "text": "one"}


# ---- splits


class Source:
    name = "list"

    def __init__(self, texts: list[str]):
        self.texts, self.fingerprint = texts, repr(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict:
        return {"text": self.texts[i], "number": i}

    def where(self, i: int) -> str:
        return f"list:{i}"


SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
DOCS = st.lists(st.one_of(TEXT, st.sampled_from(["a", "a ", "b"])), max_size=20)


@given(DOCS, st.sampled_from(["hash", "tail"]), SHARES)
def test_no_document_is_on_both_sides_of_a_split_and_none_is_lost(texts, rule, share):
    source = Source(texts)
    sides = split_holdout(source, rule, share)
    assert sides[0].fingerprint != sides[1].fingerprint != source.fingerprint
    if rule == "tail" and len(texts) == 1:
        begin, end = (side[0]["text"] for side in sides)
        assert begin + end == texts[0] and [len(side) for side in sides] == [1, 1]
        return
    words = [" ".join(text.split()) for text in texts]
    if len(texts) < 2 or (rule == "hash" and len(set(words)) < 2):
        for side in sides:
            with pytest.raises(UserError) as refused:
                len(side)
            assert len(str(refused.value).splitlines()) <= 3
        return
    numbers = [[record["number"] for record in records(side)] for side in sides]
    assert all(numbers) and sorted(numbers[0] + numbers[1]) == list(range(len(texts)))
    assert all(side.where(0) == f"list:{own[0]}" for side, own in zip(sides, numbers, strict=True))
    again = [[record["number"] for record in records(side)] for side in split_holdout(Source(texts), rule, share)]
    assert again == numbers
    if rule == "hash":
        assert not {words[i] for i in numbers[0]} & {words[i] for i in numbers[1]}
    else:
        assert max(numbers[0]) < min(numbers[1])


@given(DOCS, DOCS, st.integers(1, 30))
def test_a_sample_of_joined_sources_has_each_document_at_most_once(texts, more, count):
    both = joined(Source(texts), Source(more))
    assert [record["text"] for record in records(both)] == texts + more
    drawn = records(sample(both, count))
    assert len(drawn) == min(count, len(both))
    assert len({(record["text"], record["number"]) for record in drawn}) <= len(drawn)
    places = [both.where(i) for i in range(len(both))]
    chosen = [sample(both, count).where(i) for i in range(len(drawn))]
    rest = iter(places)
    assert all(place in rest for place in chosen), "in the order of the source"
