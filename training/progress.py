"""The run as its user watches it: one line that is redrawn on a terminal, plain lines elsewhere."""

import sys

from tqdm import tqdm

SHOWN = 5  # metrics that fit into a line


class Progress:
    """Shows the step, of how many, the newest record and the time left.

    Args:
        start: the step at which this start of the run begins.
        steps: the step at which it ends.
        quiet: show nothing.
    """

    def __init__(self, start: int, steps: int, quiet: bool = False):
        self._steps = steps
        self._stream = sys.stdout
        self._quiet = quiet
        self._bar: tqdm | None = None
        if self._stream.isatty() and not quiet:
            layout = "step {n_fmt}/{total_fmt} {bar:18} {desc} · {remaining} left"
            self._bar = tqdm(initial=start, total=steps, bar_format=layout, file=self._stream, dynamic_ncols=True)

    def advance(self) -> None:
        """One more step was given to the device."""
        if self._bar is not None:
            self._bar.update(1)

    def train(self, step: int, values: dict[str, float], seconds_left: float) -> None:
        """A training record: loss, learning rate, real tokens/s or, without any, examples/s; MFU."""
        if self._bar is not None:
            self._bar.set_description_str(_described(values))
        else:
            self.say(f"step {step:>6}/{self._steps} {_described(values)} · {_clock(seconds_left)} left")

    def valid(self, step: int, values: dict[str, float]) -> None:
        """A validation record; of many metrics the first alone, the others stand in metrics.jsonl."""
        shown = " · ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:SHOWN])
        self.say(f"step {step:>6}/{self._steps} valid: {shown}")

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        elif not self._quiet:
            print(line, file=self._stream, flush=True)

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _described(values: dict[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}", f"lr {values['learning_rate']:.2e}"]
    what = "tokens" if "tokens_per_second" in values else "examples"
    parts += [f"{values[f'{what}_per_second']:,.0f} {what}/s", f"MFU {values['mfu']:.2f}"]
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
