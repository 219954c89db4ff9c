import csv
import gzip
import io
import json
import random
import re

import numpy as np
import pytest

from data import files
from data.sources import open_source
from errors import UserError


def records(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def texts(source) -> list[str]:
    return [record["text"] for record in records(source)]


def write(path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def error_of(spec: str, **options) -> UserError:
    """The mistake that reading everything ends with."""
    with pytest.raises(UserError) as caught:
        records(open_source(spec, **options))
    assert len(str(caught.value).splitlines()) == 2
    return caught.value


def error_at_opening(spec: str, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        open_source(spec, **options)
    return caught.value


# ---- text


def random_text(chance: random.Random) -> str:
    pieces = ["a", "blank ", "é語", "\u3000", " ", "\t", "\n", "\n", "\n\n", "\r\n", "\x0b", "\u2028", "\x00", "'\""]
    return "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 60))) + "z"


@pytest.mark.parametrize("document", ["paragraph", "line", "file"])
def test_text_is_parted_as_a_brute_force_split_parts_it(tmp_path, document):
    chance = random.Random(0)
    for case in range(150):
        text = random_text(chance)
        path = write(tmp_path / f"{case}.txt", ("\ufeff" if case % 3 == 0 else "") + text)
        lines = text.replace("\r\n", "\n").split("\n")
        if document == "paragraph":
            blocks = re.split("\0\0+", "\0".join(line.replace("\0", "\x01") if line.strip() else "" for line in lines))
            expected = [block.replace("\0", "\n").replace("\x01", "\0").strip() for block in blocks]
        else:
            expected = [line.strip() for line in (lines if document == "line" else ["\n".join(lines)])]
        assert texts(open_source(f"text:{path}", document=document)) == [text for text in expected if text], repr(text)


def test_a_glob_reads_all_its_files_in_order_of_name_and_gz_among_them(tmp_path):
    write(tmp_path / "b.txt", "three")
    write(tmp_path / "a.txt.gz", gzip.compress(b"one\n\ntwo"))
    write(tmp_path / "c.txt", "four\r\n\r\n\r\nfive\n")
    (tmp_path / "d.txt").mkdir()
    source = open_source(f"text:{tmp_path}/*.txt*")
    assert texts(source) == ["one", "two", "three", "four", "five"]
    assert source.name == f"text:{tmp_path}/*.txt*"
    for index in (5, -1):
        with pytest.raises(IndexError):
            source[index]


def test_a_name_with_brackets_is_a_name(tmp_path):
    assert texts(open_source(f"text:{write(tmp_path / 'a[1].txt', 'one')}")) == ["one"]


def test_a_glob_may_match_more_files_than_a_process_may_open(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for i in range(400):
        write(tmp_path / f"{i:03}.txt", f"number {i}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        found = texts(open_source(f"text:{tmp_path}/*.txt", document="file"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == [f"number {i}" for i in range(400)]


# ---- tables


def table(rows: list[list[str]], newline: str = "\n") -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=newline).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_holds_what_pythons_csv_module_reads(tmp_path, newline, packed, bom):
    chance = random.Random(1)
    pieces = ['"', ",", "\n", "\r\n", "\n\n", "x", "é", "漢字 ", "", "\u2028", "\x00", "\ufeff", "\t", "\x0c"]
    cells = ["".join(chance.choice(pieces) for _ in range(chance.randrange(8))) for _ in range(600)]
    rows = [["label", "text", "note"]] + [cells[i : i + 3] for i in range(0, 600, 3)]
    content = (bom + table(rows, newline)).encode("utf-8").replace(b"x,x", b"x,x" + newline.encode() * 2, 1)
    path = write(tmp_path / ("a.csv.gz" if packed else "a.csv"), gzip.compress(content) if packed else content)
    expected = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    source = open_source(f"csv:{path}")
    assert records(source) == expected and len(expected) >= 200
    for i in np.random.default_rng(0).permutation(len(source)).tolist():
        assert source[i] == expected[i]


def test_a_csv_field_may_be_longer_than_the_csv_modules_own_bound(tmp_path):
    long = "word " * 100_000
    path = write(tmp_path / "a.csv", table([["text"], [long], ["short"]]))
    assert texts(open_source(f"csv:{path}")) == [long, "short"]


def test_tsv_is_split_at_tabs_and_knows_no_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufeff\r\nsentence\tlabel\r\n"open\t1\r\n\r\n  \t0\r\na,"b"\t\n\t2')
    assert records(open_source(f"tsv:{path}", text="sentence")) == [
        {"sentence": '"open', "label": "1", "text": '"open'},
        {"sentence": "  ", "label": "0", "text": "  "},
        {"sentence": 'a,"b"', "label": "", "text": 'a,"b"'},
        {"sentence": "", "label": "2", "text": ""},
    ]


def test_jsonl_holds_what_json_reads(tmp_path):
    objects = [{"body": f'é "{i}"\n漢 😀', "label": i, "more": {"a": [i, None]}} for i in range(20)]
    lines = [json.dumps(value, ensure_ascii=i % 2 == 0) for i, value in enumerate(objects)]
    path = write(tmp_path / "a.jsonl", "\ufeff" + "\n\n  \n".join(lines) + "\n\n")
    source = open_source(f"jsonl:{path}", text="body")
    assert records(source) == [{**value, "text": value["body"]} for value in objects]


@pytest.mark.parametrize("packed", [False, True])
def test_a_record_is_named_by_its_file_and_the_line_that_it_starts_in(tmp_path, packed):
    contents = {
        "text": ["\ufeff\n one\ntwo\n\n\nthree", "four"],
        "jsonl": ['\n{"text": "1"}\r\n\r\n\r\n{"text": "2"}\n', '{"text": "3"}'],
        "csv": ['text,b\n"1\n1",2\n\n\n3,4\n', '\n"te\nxt",text\n1,2\n'],
        "tsv": ["text\tb\n1\t2\n\n\n3\t4\n", "\n\ntext\n1\n"],
    }
    lines = {"text": [2, 6, 1], "jsonl": [2, 5, 1], "csv": [2, 6, 4], "tsv": [2, 5, 4]}
    for kind, written in contents.items():
        paths = [tmp_path / f"{i}.{kind}{'.gz' if packed else ''}" for i in range(2)]
        for path, content in zip(paths, written, strict=True):
            write(path, gzip.compress(content.encode()) if packed else content)
        source = open_source(f"{kind}:{tmp_path}/?.{kind}*")
        expected = [f"{path}:{line}" for path, line in zip((paths[0], *paths), lines[kind], strict=True)]
        assert [source.where(i) for i in range(len(source))] == expected
        with pytest.raises(IndexError):
            source.where(3)


# ---- fingerprints and laziness


def test_the_fingerprint_is_of_the_content_and_of_the_way_it_is_read(tmp_path):
    one = write(tmp_path / "one", "text\tother\na\tb\n")
    copy = write(tmp_path / "copy", "text\tother\na\tb\n")
    changed = write(tmp_path / "changed", "text\tother\na\tc\n")
    assert open_source(f"tsv:{one}").fingerprint == open_source(f"tsv:{copy}").fingerprint
    sources = [
        open_source(f"tsv:{one}"),
        open_source(f"tsv:{changed}"),
        open_source(f"tsv:{one}", text="other"),
        open_source(f"tsv:{tmp_path}/[oc][no]*e"),
        open_source(f"tsv:{tmp_path}/*"),
        *(open_source(f"text:{one}", document=document) for document in ("paragraph", "line", "file")),
    ]
    distinct = {source.fingerprint for source in sources}
    assert len(distinct) == len(sources) - 1  # the glob that matches `one` alone is `one`
    document = open_source(f"tsv:{one}", document="line")
    assert document.fingerprint == sources[0].fingerprint  # of no effect there


def test_opening_neither_unpacks_nor_looks_for_records(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv.gz", gzip.compress(table([["text"], ["one"], ["two"]]).encode()))
    calls = []
    for name in ("_unpack", "_row_starts"):
        method = getattr(files._File, name)
        monkeypatch.setattr(files._File, name, lambda *a, m=method, n=name: calls.append(n) or m(*a))
    source = open_source(f"csv:{path}")
    assert source.fingerprint and calls == []
    assert texts(source) == ["one", "two"] and calls == ["_unpack", "_row_starts"]
    assert texts(open_source(f"csv:{path}")) == ["one", "two"] and calls.count("_unpack") == 1


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = write(tmp_path / "a.txt", "a first content that is long")
    assert texts(open_source(f"text:{path}")) == ["a first content that is long"]
    write(tmp_path / "a.txt", "second")
    assert texts(open_source(f"text:{path}")) == ["second"]


# ---- mistakes


def test_what_is_no_file_is_refused_at_opening(tmp_path, monkeypatch):
    field = "config.data.valid"
    for spec, problem in [
        (f"text:{tmp_path}/none.txt", "No such file"),
        (f"text:{tmp_path}/*.txt", "no file matches"),
        (f"text:{tmp_path}", "is a folder"),
        ("text:/dev/null", "no ordinary file"),
        ("text:", "names no file"),
    ]:
        error = error_at_opening(spec, field=field)
        assert error.field == field and problem in str(error.value)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.txt", "secret")  # root reads everything, so the refusal is made here
    monkeypatch.setattr(files.hashlib, "file_digest", refuse)
    error = error_at_opening(f"text:{path}", field=field)
    assert error.field == field and "Permission denied" in str(error.value)


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("content", ["", "\n\r\n\n", "\ufeff", "\ufeff\n"])
def test_an_empty_file_is_refused_at_opening_also_in_a_gz(tmp_path, kind, content):
    for path in (write(tmp_path / "a", content), write(tmp_path / "b.gz", gzip.compress(content.encode()))):
        error = error_at_opening(f"{kind}:{path}")
        assert error.field == path and "is empty" in str(error.value)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_without_records_is_refused(tmp_path, kind):
    path = write(tmp_path / "a", "text\n\n")
    assert "holds no records" in str(error_of(f"{kind}:{path}").value)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", '"a\nb",c\n1,2\n'),
        ("tsv", "a\tc\n1\t2\n"),
        ("jsonl", '\n{"a": 1, "c": 2}\n' + '{"a": 0}\n' * 20_000),  # a long file, too
    ],
)
def test_a_missing_column_is_refused_at_opening_and_the_columns_are_listed(tmp_path, kind, content):
    path = write(tmp_path / "file", content)
    error = error_at_opening(f"{kind}:{path}", text="foo")
    assert (error.field, error.value) == ("config.data.text", "'foo'")
    assert error.mend.startswith("columns of ") and path in error.mend
    assert error.mend.endswith(": a\nb, c" if kind == "csv" else ": a, c")


def test_two_columns_of_the_same_name_cannot_be_the_text(tmp_path):
    path = write(tmp_path / "a.tsv", "text\ttext\tid\n1\t2\t3\n")
    assert "two columns 'text'" in str(error_at_opening(f"tsv:{path}"))


def test_of_two_other_columns_of_the_same_name_neither_stands_in_the_records(tmp_path):
    path = write(tmp_path / "a.csv", "label,text,label,id\n1,2,3,4\n")
    assert records(open_source(f"csv:{path}")) == [{"text": "2", "id": "4"}]


@pytest.mark.parametrize(
    ("kind", "content", "line", "problem"),
    [
        ("csv", 'text,b\n"1\n1",2\n\n3\n', 5, "1 fields, but the header has 2"),
        ("csv", "text,b\n1,2\n3,4,5\n", 3, "3 fields, but the header has 2"),
        ("csv", 'text,b\n1,2\n"3,4\n5,6\n7,8\n', 3, "unexpected end"),
        ("csv", 'text,b\n1,2\n"3"3,4\n', 3, "expected after"),
        ("csv", '"text,b\n1,2\n', 1, "unexpected end"),
        ("tsv", "text\tb\n1\t2\n\n3\n", 4, "1 fields, but the header has 2"),
        ("tsv", "text\tb\n1\t2\t3\n", 2, "3 fields, but the header has 2"),
        ("jsonl", '{"text": "1"}\n\n{"text": 2"}\n', 3, "is no JSON"),
        ("jsonl", '{"text": 1', 1, "is no JSON"),
        ("jsonl", '{"text": "1"}\n["text"]\n', 2, "a list, not an object"),
        ("jsonl", '{"text": "1"}\n{"text": null}\n', 2, "'text' holds a NoneType"),
        ("jsonl", '{"text": "1"}\n{"text": "a \\ud800 b"}\n', 2, "lone surrogate"),
        ("jsonl", '{"text": "1"}\n{"text": ' + "[" * 100_000 + "\n", 2, "is no JSON"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(tmp_path, kind, content, line, problem):
    path = write(tmp_path / "file", content)
    error = error_of(f"{kind}:{path}")
    assert error.field == f"{path}:{line}" and problem in str(error.value)


def test_a_later_record_without_the_column_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "1"}\n\n{"body": "2", "id": 3}\n')
    error = error_of(f"jsonl:{path}")
    assert error.field == "config.data.text" and error.mend == f"columns of line 3 of {path}: body, id"


@pytest.mark.parametrize("document", ["paragraph", "line", "file"])
@pytest.mark.parametrize("kind", ["text", "csv", "tsv", "jsonl"])
def test_what_is_not_utf8_is_named_by_file_and_line(tmp_path, kind, document):
    first = {"text": "one", "csv": "text\none", "tsv": "text\none", "jsonl": '{"text": "1"}'}[kind].encode()
    path = write(tmp_path / "file", first + b"\n" * 4 + b"caf\xe9\nmore\n")
    error = error_of(f"{kind}:{path}", document=document)
    line = first.count(b"\n") + 5
    assert error.field == f"{path}:{line}" and "not UTF-8" in str(error.value)


def test_a_broken_gz_is_refused_and_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0).integers(97, 123, 500_000).astype(np.uint8).tobytes()
    whole = gzip.compress(noise)
    flipped = whole[:300_000] + bytes([whole[300_000] ^ 255]) + whole[300_001:]
    for content in (whole[: len(whole) // 2], flipped, b"no gz at all", b"\x1f\x8b"):
        error = error_of(f"text:{write(tmp_path / 'a.txt.gz', content)}")
        assert error.field.endswith("a.txt.gz") and "cannot be unpacked" in str(error.value)
    assert not list((tmp_path / "cache").rglob("plain/*"))
