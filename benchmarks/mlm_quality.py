"""What is learned in a given time: the held-out loss of the default experiment after so many seconds of training.

    python -m benchmarks.mlm_quality --train=text:a.txt --valid=text:b.txt --tokenizer=tokenizer.json --seconds=300

The number of steps is found by timing some of them, since the schedule must know its end; the seconds that the training
then really took, data included, stand in the result. Loss and accuracy are over the whole validation source, of 15 %
masked tokens, whatever share was masked in training.
"""

import time
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax

from benchmarks.bare_step import prepare
from benchmarks.report import tell
from cli import commandline
from configs import bert_mlm
from data.pipeline import eval_batches
from errors import UserError
from training.step import evaluate, make_eval_step

FLAGS: dict[str, Any] = {"train": "", "valid": "", "tokenizer": "wordpiece:8192", "seconds": 300.0}
FLAGS |= {"variant": "tiny", "seed": 0}
TIMED_STEPS = 100


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    for name in ("train", "valid"):
        if not flags[name]:
            raise UserError(f"--{name}", "is missing", "Name a source: text:PATH")
    config = bert_mlm.get_config(flags["variant"])
    config.seed = flags["seed"]
    config.data.train, config.data.valid, config.data.tokenizer = flags["train"], flags["valid"], flags["tokenizer"]
    config.train.histogram_every = 0

    seconds, _ = _train(config, TIMED_STEPS)
    config.train.steps = int(TIMED_STEPS * flags["seconds"] / seconds)
    seconds, bare_and_state = _train(config, config.train.steps)
    bare, state = bare_and_state
    held_out = (bare.put(batch) for batch in eval_batches(bare.task.rows("valid"), config.train.batch_size))
    values = bare.task.metrics(*evaluate(jax.jit(make_eval_step(bare.run.evaluate)), state, held_out))
    result = {
        **flags,
        "seconds": round(seconds, 1),
        "steps": config.train.steps,
        "tokens": config.train.steps * config.train.batch_size * config.data.seq_len,
        **{name: round(value, 4) for name, value in values.items()},
    }
    tell("mlm_quality", [result])
    return 0


def _train(config: Any, steps: int) -> tuple[float, Any]:
    """The seconds of so many steps, batches included; the prepared step and the trained state."""
    bare = prepare(config)
    state, totals = bare.state, bare.totals
    start = time.perf_counter()
    for _ in range(steps):
        state, totals = bare.step(state, totals, bare.put(next(bare.feed)[1]))
    jax.block_until_ready(state)
    return time.perf_counter() - start, (bare, state)


if __name__ == "__main__":
    commandline.run(main)
