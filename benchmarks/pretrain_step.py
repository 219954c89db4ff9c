"""How fast the bare step of a language model is: real tokens/s, and MFU against the best GEMM of the same process.

    python -m benchmarks.pretrain_step [--experiment=bert_mlm] [--sizes=2x128,4x256,4x512] [--rows=32] [--dropout=0.1]

The step is the one that train.py compiles, on packed rows of `--train`; data, log and checkpoints are not in it. One
JSON object and one column of the table a size (layers × width). What short texts cost: `--train=FILE --document=line`
beside whole documents.
"""

import re
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

from benchmarks.bare_step import measure, prepare
from benchmarks.report import tell
from cli import commandline
from configs import bert_mlm, gpt_lm
from errors import UserError

EXPERIMENTS = {"bert_mlm": (bert_mlm, "wordpiece", "post"), "gpt_lm": (gpt_lm, "bpe", "pre")}
FLAGS: dict[str, Any] = {"experiment": "bert_mlm", "sizes": "2x128,4x256,4x512", "rows": 32, "seq_len": 128}
FLAGS |= {
    "dropout": 0.1,
    "steps": 30,
    "vocab": 8192,
    "dtype": "float32",
    "norm": "",
    "position": "learned",
    "scan": False,
    "train": "pydocs",
    "document": "paragraph",
}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    if flags["experiment"] not in EXPERIMENTS:
        raise UserError("--experiment", repr(flags["experiment"]), f"Choose {' or '.join(EXPERIMENTS)}.")
    sizes = flags.pop("sizes").split(",")
    for size in sizes:
        if not re.fullmatch(r"\d+x\d+", size):
            raise UserError("--sizes", repr(size), "Give layers x width, with commas between: 2x128,4x256")
    tell("pretrain_step", (_measured(size, flags) for size in sizes))
    return 0


def _measured(size: str, flags: dict[str, Any]) -> dict[str, Any]:
    experiment, tokenizer, norm = EXPERIMENTS[flags["experiment"]]
    flags = flags | {"norm": flags["norm"] or norm}
    config = experiment.get_config()
    config.model.num_layers, config.model.hidden_size = map(int, size.split("x"))
    config.model.dropout = config.model.attention_dropout = flags["dropout"]
    config.model.norm, config.model.position = flags["norm"], flags["position"]
    config.model.scan = flags["scan"]
    config.data.tokenizer, config.data.seq_len = f"{tokenizer}:{flags['vocab']}", flags["seq_len"]
    config.data.train, config.data.document = flags["train"], flags["document"]
    config.train.batch_size, config.dtype = flags["rows"], flags["dtype"]
    return {"size": size, **flags, **measure(prepare(config), flags["steps"])}


if __name__ == "__main__":
    commandline.run(main)
