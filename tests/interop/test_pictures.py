"""Folders of ViT and ResNet: in with transformers' own numbers, out with the tensors that came in, damage refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from errors import UserError
from interop.folder import FAMILIES, export_folder, open_folder
from models import MODELS, parameters
from models.resnet import ResNetConfig
from models.vit import ViTConfig

GOLDEN = {name: dict(np.load(Path(__file__).parent.parent / "golden" / f"{name}.npz")) for name in ("vit", "resnet")}
LABELS = ("ant", "bee", "cat", "dog", "eel")
COMMON = {"id2label": dict(enumerate(LABELS)), "num_channels": 3}
VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
    "hidden_act": "gelu",
    "qkv_bias": True,
} | COMMON
RESNET = {
    "model_type": "resnet",
    "architectures": ["ResNetForImageClassification"],
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 2],
    "layer_type": "basic",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
} | COMMON
ABOUT = {
    "vit": VIT,
    "basic": RESNET,
    "bottleneck": RESNET | {"depths": [2, 1], "layer_type": "bottleneck", "downsample_in_bottleneck": True},
}
KINDS = tuple(ABOUT)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def golden(kind: str) -> dict[str, np.ndarray]:
    """The arrays of a model; those of the two ResNets stand in one file."""
    if kind == "vit":
        return GOLDEN["vit"]
    own = {name.removeprefix(f"{kind}/"): array for name, array in GOLDEN["resnet"].items()}
    return own | {"logits": own["eval/logits"]}


def weights(kind: str) -> dict[str, np.ndarray]:
    """The tensors of a folder."""
    found = {}
    for name, array in golden(kind).items():
        place, _, full = name.partition("/")
        if place in ("weights", "statistics"):
            found[full] = array
        if full.endswith("running_mean") and place == "statistics":
            found[full.replace("running_mean", "num_batches_tracked")] = np.array(7)
    return found


@pytest.fixture
def write(tmp_path):
    """`write(kind, tensors, preprocessor, **options of config.json)`: a folder as transformers saves one."""

    def written(kind: str, tensors=None, preprocessor=PREPROCESSOR, **about) -> Path:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(ABOUT[kind] | about))
        if preprocessor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        whole = {name: np.ascontiguousarray(array) for name, array in (tensors or weights(kind)).items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return written


def logits(found, kind: str) -> np.ndarray:
    family = MODELS[found.name]
    config = family.config(**found.model, num_labels=5)
    graphdef, *trees = parameters.structure(lambda rngs: family.heads["image_classification"](config, rngs))
    arrays = {path: jnp.asarray(array) for path, array in found.params.items()}
    assert set(arrays) == {path for tree in trees for path in parameters.flatten(tree)}
    images = golden(kind)["pixel_values"].transpose(0, 2, 3, 1)
    trees = [parameters.graft(tree, arrays) for tree in trees]
    return np.asarray(jax.jit(lambda trees: nnx.merge(graphdef, *trees)(images))(trees))


def exported(found, target: Path, **more) -> Path:
    about = {"labels": found.labels, "problem": "multiclass", "normalization": found.normalization}
    model = {"image_size": 26} | found.model
    head = "image_classification"
    export_folder(target, name=found.name, model=model, head=head, params=found.params, **about | more)
    return target


# ---- the numbers


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_logits_of_transformers(write, kind):
    found = open_folder(write(kind))
    expected = golden(kind)["logits"]
    np.testing.assert_allclose(logits(found, kind), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert (found.heads, found.labels, found.problem) == (("image_classification",), LABELS, "multiclass")
    assert found.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.tokenizer is None and found.left_over == (), "the counters of batches are no weights"


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_transformers_go_out_as_they_came_in(write, tmp_path, kind):
    found = open_folder(write(kind))
    folder = exported(found, tmp_path / "out")
    out = load_file(folder / "model.safetensors")
    assert out.keys() == weights(kind).keys()
    for name, array in weights(kind).items():
        if name.endswith("num_batches_tracked"):
            assert out[name].dtype == np.int64 and out[name].shape == () and out[name] == 0
        else:
            np.testing.assert_array_equal(out[name], array, err_msg=name)
    again = open_folder(folder)
    assert (again.model, again.labels, again.normalization) == (found.model, found.labels, found.normalization)
    for path, array in found.params.items():
        np.testing.assert_array_equal(again.params[path], array, err_msg=path)
        assert again.params[path].flags.c_contiguous and again.params[path].dtype == np.float32


def test_config_json_and_the_preprocessor_say_all_that_transformers_asks(write, tmp_path):
    folder = exported(open_folder(write("vit")), tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    about = json.loads((folder / "config.json").read_text())
    assert about == VIT | {
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "problem_type": "single_label_classification",
        "dtype": "float32",
    }
    resize = {"do_resize": True, "resample": 2, "size": {"height": 12, "width": 12}}
    assert json.loads((folder / "preprocessor_config.json").read_text()) == PREPROCESSOR | resize
    about = json.loads((exported(open_folder(write("basic")), tmp_path / "two") / "config.json").read_text())
    assert {option: about[option] for option in RESNET if option != "id2label"} == {
        option: value for option, value in RESNET.items() if option != "id2label"
    }
    settings = json.loads((tmp_path / "two" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 26, "width": 26}


# ---- the forms that folders come in


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_alone_has_no_head_and_its_pooler_is_left_over(write, kind):
    """As google/vit-base-patch16-224-in21k lies on the Hub."""
    whole = open_folder(write(kind))
    bare = {name.split(".", 1)[1]: array for name, array in weights(kind).items() if "classifier" not in name}
    poolers = ("pooler.dense.weight", "pooler.dense.bias") if kind == "vit" else ()
    bare |= {name: np.ones(16, np.float32) for name in poolers}
    found = open_folder(write(kind, bare, architectures=["ViTModel"]))
    assert (found.heads, found.labels, found.problem) == ((), (), "") and set(found.left_over) == set(poolers)
    assert found.params.keys() == {path for path in whole.params if not path.startswith("classifier")}
    for path, array in found.params.items():
        np.testing.assert_array_equal(array, whole.params[path], err_msg=path)


def test_the_same_label_twice_is_told_apart_by_number(write):
    """ImageNet has a crane that flies and one that lifts."""
    names = {"0": "crane", "1": "bee", "2": "crane", "3": "dog", "4": "eel"}
    assert open_folder(write("vit", id2label=names)).labels == ("crane (0)", "bee", "crane (2)", "dog", "eel")


@pytest.mark.parametrize("names", [None, {}])
def test_labels_without_names_are_numbered(write, names):
    assert open_folder(write("vit", id2label=names)).labels == tuple(f"LABEL_{i}" for i in range(5))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("vit", None, ((0.5,) * 3, (0.5,) * 3)),
        ("basic", None, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("vit", {"image_mean": [0.1, 0.2, 0.3]}, ((0.1, 0.2, 0.3), (0.5,) * 3)),
        ("vit", {"do_normalize": False, "image_mean": 7}, ((0.0,) * 3, (1.0,) * 3)),
        ("vit", {"rescale_factor": 0.00392156862745098, "do_rescale": None}, ((0.5,) * 3, (0.5,) * 3)),
    ],
)
def test_what_a_preprocessor_is_silent_about_is_the_familys(write, kind, settings, expected):
    assert open_folder(write(kind, preprocessor=settings)).normalization == expected


def test_silence_means_the_defaults_of_transformers():
    """A ViT-Base with patches of 16 × 16, and a ResNet-50."""
    vit, resnet = (FAMILIES[name].read_config({}, Path("config.json"), "--from") for name in ("vit", "resnet"))
    expected = ViTConfig(num_layers=12, hidden_size=768, patch_size=16, image_size=224, channels=3)
    assert ViTConfig(**vit) == expected and expected.dropout == expected.attention_dropout == 0
    assert (expected.num_heads, expected.intermediate_size, expected.layer_norm_epsilon) == (12, 3072, 1e-12)
    widths = (256, 512, 1024, 2048)
    expected = ResNetConfig(depths=(3, 4, 6, 3), widths=widths, block="bottleneck", stem="7x7", channels=3)
    assert ResNetConfig(**resnet) == expected and expected.stem_width == 64


# ---- what is refused


def refused(folder: Path, said: str) -> UserError:
    with pytest.raises(UserError, match=said) as raised:
        open_folder(folder, "--from")
    assert raised.value.field == "--from" and str(folder) in raised.value.value
    assert len(str(raised.value).splitlines()) <= 3
    return raised.value


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ({"patch_size": 5}, "patch_size is 5 does not divide pictures of 12 × 12"),
        ({"patch_size": [4, 4]}, r"patch_size is \[4, 4\]"),
        ({"patch_size": 2}, r"by config.json \["),
        ({"image_size": 16}, r"position_embeddings is \[1, 10, 16\], by config.json \[1, 17, 16\]"),
        ({"image_size": 4 * 10**8}, r"position_embeddings is \[1, 10, 16\]"),
        ({"image_size": 4 * 10**12}, r"position_embeddings is \[1, 10, 16\]"),
        ({"image_size": "12"}, "image_size is '12'"),
        ({"num_channels": 1}, r"image_mean is \[0.1, 0.2, 0.3\]"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3 heads do not divide"),
        ({"num_hidden_layers": 3}, "no vit.encoder.layer.2.output.dense.weight, the last of 3 layers"),
        ({"num_hidden_layers": 10**9}, "the last of 1000000000 layers"),
        ({"hidden_size": 10**12}, r"by config.json \["),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier.bias is \[5\], by config.json \[2\]"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": ["a"]}, "id2label"),
        ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification'"),
        ({"id2label": {"0": "a"}}, "problem_type is 'regression'"),
    ],
)
def test_a_vit_that_is_not_computed_or_does_not_fit_is_refused_by_name(write, about, said):
    refused(write("vit", **about), said)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is true with block basic"),
        ({"downsample_in_bottleneck": 1}, "downsample_in_bottleneck is 1"),
        ({"layer_type": "wide"}, "layer_type is 'wide'"),
        ({"layer_type": 2}, "layer_type is 2"),
        ({"layer_type": "bottleneck"}, r"by config.json \[|has no resnet"),
        ({"depths": [1, 3]}, "no resnet.encoder.stages.1.layers.2.layer.0.convolution.weight, the last of 3 layers"),
        ({"depths": [10**9, 2]}, "no resnet.encoder.stages.0.layers.999999999.*the last of 1000000000 layers"),
        ({"depths": [1, 2, 1], "hidden_sizes": [8, 16, 32]}, "no resnet.encoder.stages.2.layers.0"),
        ({"depths": [1]}, "depths is 1 stages, and widths has 2"),
        ({"depths": [1, 0]}, r"depths is \[1, 0\]"),
        ({"depths": []}, r"depths is \[\]"),
        ({"depths": 3}, "depths is 3"),
        ({"depths": [1, 2.0]}, r"depths is \[1, 2.0\]"),
        ({"hidden_sizes": [8, 24]}, r"by config.json \["),
        ({"hidden_sizes": [8, 10**12]}, r"by config.json \["),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    ],
)
def test_a_resnet_that_is_not_computed_or_does_not_fit_is_refused_by_name(write, about, said):
    refused(write("basic", **about), said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0]}, r"image_std is \[0.5, 0.5, 0\]"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std is"),
    ],
)
def test_pictures_that_are_read_otherwise_are_refused(write, settings, said):
    refused(write("vit", preprocessor=PREPROCESSOR | settings), rf"preprocessor_config.json: {said}")


def test_a_preprocessor_that_is_no_json_is_refused(write):
    folder = write("vit")
    (folder / "preprocessor_config.json").write_text("{")
    refused(folder, "preprocessor_config.json is no JSON")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vit", "vit.embeddings.cls_token"),
        ("vit", "vit.encoder.layer.0.attention.attention.key.bias"),
        ("basic", "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var"),
    ],
)
def test_a_missing_or_misshapen_tensor_is_named(write, kind, name):
    tensors = weights(kind)
    held = tensors.pop(name)
    refused(write(kind, tensors), f"has no {name}\n")
    refused(write(kind, tensors | {name: held[..., :-1]}), f"{name} is .*, by config.json")
    refused(write(kind, tensors | {name: held[None]}), f"{name} is .*, by config.json")
    refused(write(kind, tensors | {name: np.full_like(held, np.nan)}), f"{name} has numbers that are not finite")


def test_weights_as_pickle_alone_are_refused_unopened(write):
    folder = write("vit")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pickle")


@pytest.mark.parametrize(
    ("kind", "option", "value", "mend"),
    [
        ("vit", "pool", "mean", "Train with pool=cls to export."),
        ("vit", "position", "rope", "Train with position=learned to export."),
        ("vit", "norm", "post", "Train with norm=pre to export."),
        ("vit", "layer_scale", 0.1, "Train with layer_scale=0.0 to export."),
        ("basic", "stem", "3x3", "Train with stem=7x7 to export."),
    ],
)
def test_a_model_that_transformers_has_not_is_not_written(write, tmp_path, kind, option, value, mend):
    found = open_folder(write(kind))
    found.model[option] = value
    with pytest.raises(UserError) as raised:
        exported(found, tmp_path / "out")
    assert (raised.value.field, raised.value.mend) == (f"config.model.{option}", mend)
    assert str(value) in raised.value.value and not (tmp_path / "out").exists()
