"""Draws the curves of one or more runs into one picture, from their metrics.jsonl.

python -m benchmarks.curves --runs=runs/bert_mlm,runs/other --output=curves.png [--metric=loss]
"""

import json
from pathlib import Path

import matplotlib

from cli import commandline
from errors import UserError

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

FLAGS = {"runs": "runs/bert_mlm", "output": "curves.png", "metric": "loss"}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=130, layout="constrained")
    for number, run in enumerate(flags["runs"].split(",")):
        path = Path(run) / "metrics.jsonl"
        if not path.is_file():
            raise UserError("--runs", f"{path} is not there", "Name the folders of runs, with commas between.")
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for split, style in (("train", "-"), ("valid", "o--")):
            drawn = [record for record in records if record["split"] == split and flags["metric"] in record]
            if drawn:
                steps, values = [r["step"] for r in drawn], [r[flags["metric"]] for r in drawn]
                axes.plot(steps, values, style, color=f"C{number}", markersize=4, label=f"{Path(run).name}: {split}")
    axes.set(xlabel="step", ylabel=flags["metric"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(flags["output"])
    print(f"drawn to {flags['output']}")
    return 0


if __name__ == "__main__":
    commandline.run(main)
