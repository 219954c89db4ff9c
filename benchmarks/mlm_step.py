"""How fast the bare masked-language-model step is: real tokens/s, and MFU against the best GEMM of the same process.

    python -m benchmarks.mlm_step --layers=4 --width=256 [--vocab=8192] [--rows=32] [--seq_len=128] [--dropout=0.1]

The step is the one that train.py compiles, on packed rows of `pydocs`; data, log and checkpoints are not in it.
"""

import json
import statistics
import time
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
import numpy as np

import train
from cli import commandline
from configs import bert_mlm
from data.pipeline import TrainBatches
from tasks.mlm import MaskedLM
from training import sharding
from training.step import empty_totals
from training.throughput import measured_peak

FLAGS: dict[str, Any] = {"layers": 2, "width": 128, "vocab": 8192, "rows": 32, "seq_len": 128, "dropout": 0.1}
FLAGS |= {"steps": 30, "dtype": "float32", "norm": "post", "position": "learned"}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    config = bert_mlm.get_config()
    config.model.num_layers, config.model.hidden_size = flags["layers"], flags["width"]
    config.model.dropout = config.model.attention_dropout = flags["dropout"]
    config.model.norm, config.model.position = flags["norm"], flags["position"]
    config.model.vocab_size = config.model.max_positions = 0  # both follow from the data
    config.data.tokenizer, config.data.seq_len = f"wordpiece:{flags['vocab']}", flags["seq_len"]
    config.train.batch_size, config.dtype = flags["rows"], flags["dtype"]

    task = MaskedLM.create(config, lambda line: None)
    rows = task.rows("train")
    mesh = sharding.make_mesh(-1, flags["rows"])
    forward, fresh_state, train_step = train.assemble(config, task)
    everywhere = sharding.replicated(mesh)
    state = jax.jit(fresh_state, out_shardings=everywhere)()
    feed = TrainBatches(rows, flags["rows"], seed=0)
    batches = [sharding.put_batch(next(feed)[1], mesh) for _ in range(8)]
    totals = sharding.put_replicated(empty_totals(forward, state, batches[0], config.train.histogram_every), mesh)
    start = time.perf_counter()
    step = jax.jit(train_step, donate_argnums=0, out_shardings=everywhere).lower(state, totals, batches[0]).compile()
    compile_seconds = time.perf_counter() - start

    seconds = []
    for i in range(3 + flags["steps"]):
        start = time.perf_counter()
        state, totals = step(state, totals, batches[i % len(batches)])
        jax.block_until_ready(totals)
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds[3:])
    tokens = np.mean([float((np.asarray(batch["segment_ids"]) > 0).sum()) for batch in batches])
    peak = measured_peak(flags["dtype"], repeats=20)
    print(
        json.dumps(
            {
                "benchmark": "mlm_step",
                **flags,
                "step_ms": round(1e3 * middle, 1),
                "step_ms_range": [round(1e3 * min(seconds[3:]), 1), round(1e3 * max(seconds[3:]), 1)],
                "tokens_per_second": round(tokens / middle),
                "mfu": round(task.flops_per_row() * flags["rows"] / middle / peak, 3),
                "gemm_gflops": round(peak / 1e9),
                "compile_seconds": round(compile_seconds, 1),
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
            }
        )
    )
    return 0


if __name__ == "__main__":
    commandline.run(main)
