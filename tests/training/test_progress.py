import io
import sys

import pytest

from training.progress import Progress

RECORD = {"loss": 3.21987, "learning_rate": 1.5e-3, "tokens_per_second": 20_123.4, "mfu": 0.271}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(monkeypatch, stream, **settings) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    progress = Progress(100, 500, **settings)
    for _ in range(50):
        progress.advance()
    progress.train(150, RECORD, 83.6)
    progress.advance()
    progress.valid(150, {"loss": 3.5, "accuracy": 0.25})
    progress.close()
    return stream.getvalue()


def test_plain_lines_where_the_output_is_no_terminal(monkeypatch):
    assert watch(monkeypatch, io.StringIO()).splitlines() == [
        "step    150/500 loss 3.2199 · lr 1.50e-03 · 20,123 tokens/s · MFU 0.27 · 01:24 left",
        "step    150/500 valid: loss 3.5 · accuracy 0.25",
    ]


def test_one_line_that_is_redrawn_on_a_terminal_and_records_that_stay(monkeypatch):
    shown = watch(monkeypatch, Terminal())
    last = shown.split("\r")[-1]
    assert last.startswith("step 151/500 ") and " left" in last
    assert " loss 3.2199 · lr 1.50e-03 · 20,123 tokens/s · MFU 0.27 · " in last and "," not in last.split("loss")[0]
    assert "step    150/500 valid: loss 3.5 · accuracy 0.25\n" in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_quiet_process_shows_nothing(monkeypatch, stream):
    assert watch(monkeypatch, stream(), quiet=True) == ""
