"""How fast the bare step of a language model is: real tokens/s, and MFU against the best GEMM of the same process.

    python -m benchmarks.pretrain_step [--experiment=bert_mlm] [--sizes=2x128,4x256,4x512] [--rows=32] [--dropout=0.1]

The step is the one that train.py compiles, on packed rows of `--train`; data, log and checkpoints are not in it. One
JSON object a size (layers × width). How many tokens a second short texts cost: `--train=FILE --document=line` beside
whole documents.
"""

import json
import re
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax

from benchmarks.bare_step import measure, prepare
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
    experiment, tokenizer, norm = EXPERIMENTS[flags["experiment"]]
    flags["norm"] = flags["norm"] or norm
    for size in flags["sizes"].split(","):
        match = re.fullmatch(r"(\d+)x(\d+)", size)
        if not match:
            raise UserError("--sizes", repr(size), "Give layers x width, with commas between: 2x128,4x256")
        config = experiment.get_config()
        config.model.num_layers, config.model.hidden_size = int(match[1]), int(match[2])
        config.model.dropout = config.model.attention_dropout = flags["dropout"]
        config.model.norm, config.model.position = flags["norm"], flags["position"]
        config.model.scan = flags["scan"]
        config.data.tokenizer, config.data.seq_len = f"{tokenizer}:{flags['vocab']}", flags["seq_len"]
        config.data.train, config.data.document = flags["train"], flags["document"]
        config.train.batch_size, config.dtype = flags["rows"], flags["dtype"]
        told = {name: value for name, value in flags.items() if name != "sizes"}
        where = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        measured = measure(prepare(config), flags["steps"])
        print(json.dumps({"benchmark": "pretrain_step", "size": size, **told, **measured, **where}))
    return 0


if __name__ == "__main__":
    commandline.run(main)
