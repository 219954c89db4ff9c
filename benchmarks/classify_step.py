"""How fast a text classifier is fine-tuned and evaluated: examples/s of the bare step, and of whole evaluations.

    python -m benchmarks.classify_step --init_from=FOLDER --train=tsv:train.tsv --valid=tsv:dev.tsv --text=sentence

The step is the one that train.py compiles for configs/bert_classify.py:base, on packed rows. `--frozen=4` freezes the
embeddings and the lower four layers.
"""

from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

from benchmarks.bare_step import measure, measure_evaluation, prepare
from benchmarks.report import tell
from cli import commandline
from configs import bert_classify
from training.phases import FREEZE

FLAGS: dict[str, Any] = {"init_from": "", "train": "pydocs", "valid": "", "text": "text", "label": "label"}
FLAGS |= {"rows": 16, "seq_len": 128, "frozen": 0, "dtype": "float32", "steps": 20}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    config = bert_classify.get_config("base")
    config.init_from, config.dtype = flags["init_from"], flags["dtype"]
    config.data.train, config.data.valid, config.data.seq_len = flags["train"], flags["valid"], flags["seq_len"]
    config.data.text, config.data.label = flags["text"], flags["label"]
    config.train.batch_size = flags["rows"]
    if flags["frozen"]:
        layers = "|".join(str(i) for i in range(flags["frozen"]))
        config.optimizer.rules = ((f"embeddings/.*|encoder/layers/({layers})/.*", FREEZE), (".*", 1.0))
    bare = prepare(config)
    evaluated = measure_evaluation(bare)  # first: the training takes the state's memory
    result = measure(bare, flags["steps"]) | {"evaluated_examples_per_second": evaluated}
    tell("classify_step", [{**flags, **result}])
    return 0


if __name__ == "__main__":
    commandline.run(main)
