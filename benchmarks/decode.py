"""How fast texts are decoded: tokens/s of an untrained model where nothing ends, the best beam's alone counted.

    python -m benchmarks.decode [--kind=translate|continue] [--batch=32] [--beams=4] [--source_len=24] [--new_tokens=32]

`translate` is an encoder-decoder, `continue` a GPT; with one beam decoding is greedy. Reading the source or the prompt
is in the time. One JSON object; the median of --repeats runs after one that compiles.
"""

import statistics
import time
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.report import tell
from cli import commandline
from errors import UserError
from models.decoding import Choice, Prompt, decode, search_beams
from models.gpt import GptConfig, GptForCausalLM
from models.seq2seq import Seq2Seq, Seq2SeqConfig, decoder_config
from models.transformer import empty_caches

FLAGS: dict[str, Any] = {"kind": "translate", "layers": 3, "width": 256, "vocab": 8192, "batch": 32}
FLAGS |= {"source_len": 24, "new_tokens": 32, "beams": 4, "repeats": 5}
NO_END = -1


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    if flags["kind"] not in ("translate", "continue"):
        raise UserError("--kind", repr(flags["kind"]), "Choose translate or continue.")
    if flags["kind"] == "continue" and flags["beams"] != 1:
        raise UserError("--beams", f"{flags['beams']} with --kind=continue", "Give 1: a GPT goes on greedily.")
    sizes = {"num_layers": flags["layers"], "hidden_size": flags["width"], "vocab_size": flags["vocab"]}
    sizes |= {"max_positions": flags["source_len"] + flags["new_tokens"], "dropout": 0.0, "attention_dropout": 0.0}
    shape = (flags["batch"], flags["source_len"])
    tokens = np.random.default_rng(0).integers(2, flags["vocab"], shape).astype(np.int32)
    model: Any
    if flags["kind"] == "translate":
        model = Seq2Seq(Seq2SeqConfig(**sizes, activation="silu"), nnx.Rngs(0))
    else:
        model = GptForCausalLM(GptConfig(**sizes), nnx.Rngs(0))
    run = jax.jit(_translate if flags["kind"] == "translate" else _continue, static_argnums=(2, 3))
    seconds = []
    for _ in range(1 + flags["repeats"]):
        start = time.perf_counter()
        jax.block_until_ready(run(model, tokens, flags["new_tokens"], flags["beams"]))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    result = {
        "seconds": round(median, 4),
        "ms_a_step": round(1e3 * median / flags["new_tokens"], 2),
        "tokens_per_second": round(flags["batch"] * flags["new_tokens"] / median),
        "compile_seconds": round(seconds[0], 1),
    }
    tell("decode", [{**flags, **result}])
    return 0


def _continue(model: GptForCausalLM, tokens: jax.Array, new_tokens: int, beams: int) -> Any:
    rows, length = tokens.shape
    make_logits = model.make_logits(model.config.vocab_size)

    def advance(tokens: Any, positions: Any, visible: Any, caches: Any, slot: Any) -> Any:
        hidden, caches = model.advance(tokens, positions, visible, caches, slot)
        return make_logits(hidden[:, -1:]), caches

    prompt = Prompt(tokens, jnp.full(rows, length))
    keys = jax.random.split(jax.random.key(0), rows)
    return decode(advance, _caches(model.config, rows), prompt, Choice(), keys, max_tokens=new_tokens, end_id=NO_END)


def _translate(model: Seq2Seq, tokens: jax.Array, new_tokens: int, beams: int) -> Any:
    rows, length = tokens.shape
    make_logits = model.make_logits(model.config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    source = {"source_tokens": tokens, "source_positions": positions, "source_segment_ids": jnp.ones_like(tokens)}
    memories = model.remember(source)

    def advance(tokens: Any, positions: Any, visible: Any, caches: Any, slot: Any) -> Any:
        there = jnp.ones((1, 1, 1, length), bool)
        hidden, caches = model.advance(tokens, positions, visible, caches, slot, memories, there)
        return make_logits(hidden), caches

    make_caches = _caches(decoder_config(model.config), rows)
    start = jnp.zeros(rows, jnp.int32)
    ending: dict[str, Any] = {"max_tokens": new_tokens, "end_id": NO_END}
    if beams > 1:
        return search_beams(advance, make_caches, start, beams=beams, length_penalty=1.0, **ending)
    prompt = Prompt(start[:, None], jnp.ones(rows, jnp.int32))
    return decode(advance, make_caches, prompt, Choice(), jax.random.split(jax.random.key(0), rows), **ending)


def _caches(config: Any, rows: int) -> Any:
    return lambda slots: empty_caches(config, rows, slots, jnp.dtype("float32"))


if __name__ == "__main__":
    commandline.run(main)
