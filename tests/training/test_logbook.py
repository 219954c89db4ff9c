import json
import math

import numpy as np
import tensorboardX
from tensorboardX.proto.event_pb2 import Event

from training.logbook import Logbook


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Every summary value that TensorBoard would read: (step, value)."""
    import struct

    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            yield from ((event.step, value) for value in event.summary.value)


def test_a_record_goes_to_the_file_and_to_tensorboard_under_slash_tags(tmp_path):
    book = Logbook(tmp_path)
    book.scalars(10, "train", {"loss": 2.5, "learning_rate": 1e-3})
    book.close()
    assert records(tmp_path) == [{"step": 10, "split": "train", "loss": 2.5, "learning_rate": 1e-3}]
    scalars = {value.tag: (step, value.simple_value) for step, value in events(tmp_path)}
    assert scalars["train/loss"] == (10, 2.5)


def test_what_is_not_finite_stays_valid_json(tmp_path):
    book = Logbook(tmp_path)
    book.scalars(1, "train", {"loss": math.nan, "perplexity": math.inf})
    book.close()
    assert records(tmp_path) == [{"step": 1, "split": "train", "loss": None, "perplexity": None}]


def test_a_second_start_cuts_the_records_back_to_its_step(tmp_path):
    book = Logbook(tmp_path)
    for step in (10, 20, 30):
        book.scalars(step, "train", {"loss": float(step)})
    book.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')  # a run that was killed while it wrote
    book = Logbook(tmp_path, step=20)
    book.scalars(30, "train", {"loss": 31.0})
    book.close()
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(10, 10.0), (20, 20.0), (30, 31.0)]


def test_lines_that_are_no_records_are_dropped_and_break_nothing(tmp_path):
    good = b'{"step": 3, "split": "train", "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + b'\xff\xfe\n[1]\n{}\nnull\n{"step": "x"}\n{"step": 4, "lo')
    Logbook(tmp_path, step=5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


def test_histograms_reach_tensorboard_with_their_counts(tmp_path):
    counts = np.zeros(64, np.int32)
    counts[[0, 5, 63]] = 1, 2, 3
    leaf = {
        "low": np.float32(-1),
        "high": np.float32(1),
        "counts": counts,
        "sum": np.float32(2),
        "square": np.float32(4),
    }
    empty = {
        "low": np.float32(np.nan),
        "high": np.float32(np.nan),
        "counts": counts * 0,
        "sum": np.float32(0),
        "square": np.float32(0),
    }
    book = Logbook(tmp_path)
    book.histograms(5, "parameters", {"encoder": {"kernel": leaf}, "broken": empty})
    book.close()
    found = {value.tag: value.histo for _, value in events(tmp_path) if value.HasField("histo")}
    assert list(found) == ["parameters/encoder/kernel"]
    assert (
        found["parameters/encoder/kernel"].num == 6
        and list(found["parameters/encoder/kernel"].bucket) == counts.tolist()
    )


def test_tensorboardx_is_the_one_we_know():
    assert hasattr(tensorboardX.SummaryWriter, "add_histogram_raw")
