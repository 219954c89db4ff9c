"""How fast the bare masked-language-model step is: real tokens/s, and MFU against the best GEMM of the same process.

    python -m benchmarks.mlm_step [--sizes=2x128,4x256,4x512] [--rows=32] [--seq_len=128] [--dropout=0.1]

The step is the one that train.py compiles, on packed rows of `pydocs`; data, log and checkpoints are not in it. One
JSON object a size (layers × width).
"""

import json
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
import numpy as np
from ml_collections import ConfigDict

import train
from cli import commandline
from configs import bert_mlm
from data.pipeline import TrainBatches
from errors import UserError
from tasks.mlm import MaskedLM
from training import sharding
from training.step import empty_totals
from training.throughput import measured_peak

FLAGS: dict[str, Any] = {"sizes": "2x128,4x256,4x512", "rows": 32, "seq_len": 128, "dropout": 0.1, "steps": 30}
FLAGS |= {"vocab": 8192, "dtype": "float32", "norm": "post", "position": "learned"}


class Bare(NamedTuple):
    """A compiled training step and what it takes; nothing is read or written while it runs."""

    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    state: Any
    totals: Any
    feed: TrainBatches
    put: Callable[[Any], Any]  # a batch onto the devices
    task: MaskedLM
    compile_seconds: float


def prepare(config: ConfigDict) -> Bare:
    """The step that train.py would compile for this config."""
    config.model.vocab_size = config.model.max_positions = 0  # both follow from the data
    task = MaskedLM.create(config, lambda line: None)
    mesh = sharding.make_mesh(-1, config.train.batch_size)
    everywhere = sharding.replicated(mesh)
    run = train.assemble(config, task)
    (phase,) = run.phases
    state = jax.jit(lambda: run.fresh_state(phase), out_shardings=everywhere)()
    feed = TrainBatches(task.rows("train"), config.train.batch_size, seed=config.seed)

    def put(batch: Any) -> Any:
        return sharding.put_batch(batch, mesh)

    shapes = put(next(feed)[1])
    empty = empty_totals(run.forward, state, shapes, phase, config.train.histogram_every)
    totals = sharding.put_replicated(empty, mesh)
    start = time.perf_counter()
    step = (
        jax.jit(run.train_step(phase), donate_argnums=0, out_shardings=everywhere)
        .lower(state, totals, shapes)
        .compile()
    )
    return Bare(step, state, totals, feed, put, task, time.perf_counter() - start)


def measure(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Times `steps` steps, one by one, after three that are not counted."""
    bare = prepare(config)
    batches = [bare.put(next(bare.feed)[1]) for _ in range(8)]
    state, totals, seconds = bare.state, bare.totals, []
    for i in range(3 + steps):
        start = time.perf_counter()
        state, totals = bare.step(state, totals, batches[i % len(batches)])
        jax.block_until_ready(totals)
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[3:])
    middle = statistics.median(timed)
    tokens = np.mean([float((np.asarray(batch["segment_ids"]) > 0).sum()) for batch in batches])
    peak = measured_peak(config.dtype, repeats=20)
    return {
        "step_ms": round(1e3 * middle, 1),
        "step_ms_quartiles": [round(1e3 * timed[len(timed) // 4], 1), round(1e3 * timed[3 * len(timed) // 4], 1)],
        "tokens_per_second": round(tokens / middle),
        "mfu": round(bare.task.flops_per_row() * config.train.batch_size / middle / peak, 3),
        "gemm_gflops": round(peak / 1e9),
        "compile_seconds": round(bare.compile_seconds, 1),
    }


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
        print(json.dumps({"benchmark": "mlm_step", "size": size, **told, **measure(config, flags["steps"]), **where}))
    return 0


if __name__ == "__main__":
    commandline.run(main)
