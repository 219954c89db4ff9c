import ast
import dataclasses
from pathlib import Path

import pytest

from cli import commandline, config
from models import MODELS

SMOKE = ["train.py", "--config=configs/bert_mlm.py:smoke"]


def resolved(*words):
    return config.from_command_line([*SMOKE, *words], "usage")[0]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_dataclass():
    plain = resolved()
    assert (plain.model.num_layers, plain.model.type_vocab_size) == (1, 2)
    changed = resolved("--config.model.num_layers=3", "--config.model.type_vocab_size=4", "--config.train.steps=1e2")
    assert (changed.model.num_layers, changed.model.type_vocab_size, changed.train.steps) == (3, 4, 100)


def test_every_field_of_the_model_can_be_overridden_listed_or_not():
    for field in dataclasses.fields(MODELS["bert"].config):
        assert field.name in resolved().model


@pytest.mark.parametrize("form", [["--config.data.whole_word=true"], ["--config.data.whole_word", "true"]])
def test_a_flag_of_true_and_false_takes_its_word_in_both_forms(form):
    assert resolved(*form).data.whole_word is True
    assert resolved("--config.data.whole_word", "false").data.whole_word is False


def test_rules_come_as_tuples_from_the_command_line_and_back_from_json(tmp_path):
    changed = resolved("--config.optimizer.decay_rules=(('embeddings/.*', 0), ('.*', 1))")
    assert changed.optimizer.decay_rules == (("embeddings/.*", 0), (".*", 1))
    assert config.differences(changed, changed) == []
    assert config.differences(resolved(), changed)[0].startswith("optimizer.decay_rules")


def test_only_what_may_change_between_starts_makes_no_difference():
    free = ("steps", "log_every", "eval_every", "checkpoint_every", "keep")
    words = [f"--config.train.{name}=7" for name in free]
    assert config.differences(resolved(), resolved(*words)) == []
    assert config.differences(resolved(), resolved("--config.train.batch_size=16")) == ["train.batch_size 8 -> 16"]


def test_the_workdir_is_named_after_config_and_variant():
    assert config.from_command_line(SMOKE, "")[1] == Path("runs/bert_mlm-smoke")
    assert config.from_command_line(["train.py", "--config", "configs/bert_mlm.py"], "")[1] == Path("runs/bert_mlm")
    assert config.from_command_line([*SMOKE, "--workdir=x/y"], "")[1] == Path("x/y")


@pytest.mark.parametrize("variant", ["tiny", "mini", "small", "base", "smoke"])
def test_every_variant_of_every_size_is_a_valid_config(variant):
    config.from_command_line(["train.py", f"--config=configs/bert_mlm.py:{variant}"], "")


def test_every_common_key_is_checked_or_free_on_purpose():
    """A new key in base.py must get a range, or be named here."""
    from configs import base

    free = {"init_from", "model.name", "optimizer.decay_rules", "optimizer.rules", "optimizer.phases", "lora.kernels"}
    free |= {f"data.{name}" for name in ("valid", "test", "text", "label", "tokenizer")} | {"train.best_metric"}
    free |= {f"data.{name}" for name in ("image", "mean", "std", "augment")}
    keys = {key for reads in ("texts", "pictures") for key in config.flatten(base.get_config(reads))}
    assert keys - set(config.RANGES) == free
    assert set(config.RANGES) <= keys


def test_help_says_the_usage_and_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        commandline.parse(["x.py", "--help"], {"workdir": "", "top_k": 5}, "Does a thing.")
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "Does a thing." in printed and "--top_k=5" in printed


def test_a_config_imports_nothing_by_name():
    for path in Path(config.__file__).parent.parent.joinpath("configs").glob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(getattr(n.func, "attr", getattr(n.func, "id", "")) == "import_module" for n in calls)
