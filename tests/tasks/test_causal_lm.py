import math

import jax
import numpy as np
import pytest
from flax import nnx

from cli import config as configs
from data.pipeline import eval_batches
from errors import UserError
from models import parameters
from tasks.causal_lm import CausalLM, GenerateOptions
from training.step import evaluate, make_eval_step


def make(corpus, *words) -> CausalLM:
    words = ["train.py", "--config=configs/gpt_lm.py:smoke", f"--config.data.train=text:{corpus}", *words]
    return CausalLM.create(configs.from_command_line(words, "")[0], lambda line: None)


WINDOWS = ("--config.data.windows=true", "--config.data.document=file", "--config.data.holdout=tail")


@pytest.fixture(scope="module")
def task(corpus):
    return make(corpus)


@pytest.fixture(scope="module")
def model(task):
    return task.build(nnx.Rngs(0))


def measured(task, model, batch_size=8):
    graphdef, params, model_state = parameters.split(model)
    step = jax.jit(make_eval_step(parameters.functional(graphdef, task.evaluate)))
    batches = eval_batches(task.rows("valid"), batch_size)
    return evaluate(step, {"params": params, "model_state": model_state}, batches)


@pytest.mark.parametrize("variant", ["tiny", "mini", "small", "base", "shakespeare_char"])
def test_every_variant_takes_a_step_that_keeps_shapes_and_float32_parameters(corpus, variant, check_step):
    """By shapes alone, nothing is computed; base computes in bfloat16."""
    words = ["train.py", f"--config=configs/gpt_lm.py:{variant}", f"--config.data.train=text:{corpus}"]
    tokenizer = [] if variant == "shakespeare_char" else ["--config.data.tokenizer=bpe:512"]
    config, *_ = configs.from_command_line([*words, *tokenizer], "")
    task = CausalLM.create(config, lambda line: None)
    check_step(task)


@pytest.mark.parametrize("words", [(), WINDOWS], ids=["packed", "windows"])
def test_bits_per_byte_are_the_bits_of_all_tokens_over_the_bytes_of_the_held_out_text(corpus, words):
    task = make(corpus, *words)
    model = task.build(nnx.Rngs(0))
    sums, _ = measured(task, model)
    other, _ = measured(task, model, batch_size=3)
    held_out = task.rows("valid")
    values = task.metrics(sums)
    from tasks.text import open_split

    source = open_split(task.config, "valid")
    size = sum(len(source[i]["text"].encode()) for i in range(len(source)))
    assert sums["bytes"] == pytest.approx(size, rel=1e-5)
    assert values["bits_per_byte"] == pytest.approx(sums["loss"] / math.log(2) / size, rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(values["loss"]), rel=1e-6)
    assert other["loss"] == pytest.approx(sums["loss"], rel=1e-5) and other["weight"] == sums["weight"]
    assert held_out.count > 0 and set(values) == set(task.metric_names())


def test_the_end_of_the_only_document_is_held_out(corpus):
    task = make(corpus, *WINDOWS, "--config.data.tokenizer=char")
    text = corpus.read_text(encoding="utf-8")
    train_rows, valid_rows = task.rows("train"), task.rows("valid")
    batches = list(eval_batches(valid_rows, 8))
    first = task.tokenizer.decode(batches[0]["tokens"][0])
    said = (
        first
        + "".join(
            task.tokenizer.decode(row[weights > 0])
            for batch in batches
            for row, weights in zip(batch["labels"], batch["weights"], strict=True)
        )[len(first) - 1 :]
    )
    assert said.strip() and text.rstrip("\n").endswith(said.rstrip("\n"))
    assert len(said) == pytest.approx(0.05 * len(text), rel=0.02)
    drawn = train_rows.load(np.arange(8), np.arange(8))
    assert all(task.tokenizer.decode(row) in text[: len(text) - len(said) + 2] for row in drawn["tokens"])


def lines(task, model, texts, **options):
    return list(task.predict(model, iter(texts), GenerateOptions(**options)))


def test_prompts_are_answered_in_their_order_whatever_their_lengths(task, model):
    texts = [" ".join(["the old king"] * n) for n in (3, 1, 2, 1, 3)] + ["forest", "the"]
    found = lines(task, model, texts, max_tokens=4, batch_size=2)
    assert [result["text"] for result in found] == texts
    for text, result in zip(texts, found, strict=True):
        alone = lines(task, model, [text], max_tokens=4, batch_size=2)[0]
        assert alone["continuation"] == result["continuation"]
        assert alone["score"] == pytest.approx(result["score"], abs=1e-3) and result["tokens"] <= 4


def test_who_asks_line_by_line_is_answered_line_by_line(task, model):
    asked = []

    def lines():
        for line in ("the old king", "a ship", "the river"):
            asked.append(line)
            yield line

    answers = task.predict(model, lines(), GenerateOptions(max_tokens=2, batch_size=1))
    for number in (1, 2, 3):
        next(answers)
        assert len(asked) == number


def test_drawing_depends_on_the_seed_and_on_the_line_alone(task, model):
    texts = ["the old king", "the forest"]
    one, same, other = (lines(task, model, texts, max_tokens=8, temperature=1.5, seed=s) for s in (1, 1, 2))
    assert one == same != other


def test_no_special_piece_is_ever_said(task, model):
    found = lines(task, model, ["the"] * 16, max_tokens=16, temperature=5.0, seed=1)
    specials = {task.tokenizer.token(i) for i in task.tokenizer.special_ids}
    assert not any(special in result["continuation"] for result in found for special in specials)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"max_tokens": 32}, "--max_tokens"),
        ({"max_tokens": 0}, "--max_tokens"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_k": 10**6}, "--top_k"),
        ({"top_p": 1.5}, "--top_p"),
        ({"batch_size": 0}, "--batch_size"),
    ],
)
def test_options_that_cannot_be_met_are_refused(task, model, options, field):
    with pytest.raises(UserError) as error:
        lines(task, model, ["the king"], **{"max_tokens": 4} | options)
    assert error.value.field == field


def test_a_prompt_that_leaves_no_room_is_refused(task, model):
    with pytest.raises(UserError, match="positions"):
        lines(task, model, ["the king " * 40], max_tokens=8)
