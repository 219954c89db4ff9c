"""How fast the bare masked-language-model step is: real tokens/s, and MFU against the best GEMM of the same process.

    python -m benchmarks.mlm_step [--sizes=2x128,4x256,4x512] [--rows=32] [--seq_len=128] [--dropout=0.1]

The step is the one that train.py compiles, on packed rows of `pydocs`; data, log and checkpoints are not in it. One
JSON object a size (layers × width).
"""

import json
import re
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax

from benchmarks.bare_step import measure, prepare
from cli import commandline
from configs import bert_mlm
from errors import UserError

FLAGS: dict[str, Any] = {"sizes": "2x128,4x256,4x512", "rows": 32, "seq_len": 128, "dropout": 0.1, "steps": 30}
FLAGS |= {"vocab": 8192, "dtype": "float32", "norm": "post", "position": "learned"}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    for size in flags["sizes"].split(","):
        match = re.fullmatch(r"(\d+)x(\d+)", size)
        if not match:
            raise UserError("--sizes", repr(size), "Give layers x width, with commas between: 2x128,4x256")
        config = bert_mlm.get_config()
        config.model.num_layers, config.model.hidden_size = int(match[1]), int(match[2])
        config.model.dropout = config.model.attention_dropout = flags["dropout"]
        config.model.norm, config.model.position = flags["norm"], flags["position"]
        config.data.tokenizer, config.data.seq_len = f"wordpiece:{flags['vocab']}", flags["seq_len"]
        config.train.batch_size, config.dtype = flags["rows"], flags["dtype"]
        told = {name: value for name, value in flags.items() if name != "sizes"}
        where = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        print(
            json.dumps(
                {"benchmark": "mlm_step", "size": size, **told, **measure(prepare(config), flags["steps"]), **where}
            )
        )
    return 0


if __name__ == "__main__":
    commandline.run(main)
