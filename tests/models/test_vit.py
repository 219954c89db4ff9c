"""ViT against transformers' own numbers (tests/golden/make_vit.py), its options against loops and equal models."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from errors import UserError
from models import MODELS, parameters
from models.attention import Sight
from models.layers import sinusoidal_positions
from models.vit import ViT, ViTConfig, ViTForImageClassification, cut_patches, resize_positions
from training.rules import paths

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "vit.npz"))
SIZES = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32}
CONFIG = ViTConfig(**SIZES, image_size=12, patch_size=4, channels=3, num_labels=5)
PIXELS = GOLDEN["pixel_values"].transpose(0, 2, 3, 1)

# Our path -> Hugging Face's name. Kernels are transposed there.
NAMES = {
    "embeddings/class_token": "vit.embeddings.cls_token",
    "embeddings/position/embedding": "vit.embeddings.position_embeddings",
    "embeddings/patch": "vit.embeddings.patch_embeddings.projection",
    "attention_norm": "layernorm_before",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/output": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "encoder/norm": "vit.layernorm",
    "classifier": "classifier",
}


def golden(path: str, kind: str = "weights") -> np.ndarray:
    """Transformers' array for one of our parameters."""
    if path in NAMES:
        array = GOLDEN[f"{kind}/{NAMES[path]}"]
        return array[0, 0] if path.endswith("token") else array[0]
    module, _, leaf = path.rpartition("/")
    prefix = ""
    if module.startswith("encoder/layers/"):
        _, _, number, module = module.split("/", 3)
        prefix = f"vit.encoder.layer.{number}."
    array = GOLDEN[f"{kind}/{prefix}{NAMES[module]}.{'bias' if leaf == 'bias' else 'weight'}"]
    if array.ndim == 4:  # outputs, channels, rows, columns
        array = np.moveaxis(array, 1, 3).reshape(len(array), -1)
    return array.T if leaf == "kernel" else array


def filled(config: ViTConfig, replaced: dict[str, np.ndarray] | None = None) -> nnx.Module:
    """A classifier with transformers' weights, but for those that are given."""
    graphdef, params, model_state = parameters.structure(lambda rngs: ViTForImageClassification(config, rngs))
    given = replaced or {}
    arrays = [jnp.asarray(given[path] if path in given else golden(path)) for path in paths(params)]
    assert [a.shape for a in arrays] == [leaf.shape for leaf in jax.tree.leaves(params)]
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), arrays), model_state)


@pytest.fixture(scope="module")
def model():
    return filled(CONFIG)


def assert_close(ours, theirs, tolerance=1e-5):
    """Within `tolerance` of the largest magnitude: float32 sums in another order differ in their last digits."""
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


# ---- transformers' numbers


def test_every_hidden_state_and_the_logits_are_those_of_transformers(model):
    held = parameters.flatten(parameters.split(model)[1])
    assert len(held) == sum(name.startswith("weights/") for name in GOLDEN), "no parameter is left over"
    states = model.hidden_states(PIXELS)
    assert len(states) == len(GOLDEN["hidden_states"]) == 3
    for ours, theirs in zip(states, GOLDEN["hidden_states"], strict=True):
        assert_close(ours, theirs)
    assert_close(model(PIXELS), GOLDEN["logits"])


def test_the_loss_and_the_gradient_of_every_parameter_are_those_of_transformers(model):
    graphdef, params, model_state = parameters.split(model)
    labels = GOLDEN["labels"]

    @jax.jit
    def loss(params):
        logits = nnx.merge(graphdef, params, model_state)(PIXELS)
        return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()

    assert float(loss(params)) == pytest.approx(float(GOLDEN["loss"]), rel=1e-5)
    gradients = jax.grad(loss)(params)
    for path, ours in zip(paths(gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(ours, golden(path, "grads"), rtol=1e-4, atol=5e-6, err_msg=path)


@pytest.mark.parametrize("size", [20, 8])
def test_positions_for_another_size_are_those_that_transformers_interpolates(size):
    table, expected = golden("embeddings/position/embedding"), GOLDEN[f"positions_{size}"]
    np.testing.assert_allclose(resize_positions(table, (size // 4) ** 2), expected, atol=1e-6)
    np.testing.assert_allclose(resize_positions(table[1:], (size // 4) ** 2), expected[1:], atol=1e-6)
    assert resize_positions(table, (size // 4) ** 2).dtype == np.float32


def test_positions_for_the_same_size_stay():
    table = golden("embeddings/position/embedding")
    np.testing.assert_allclose(resize_positions(table, 9), table, atol=1e-7)


def test_larger_pictures_give_the_logits_of_transformers():
    table = resize_positions(golden("embeddings/position/embedding"), 25)
    larger = filled(dataclasses.replace(CONFIG, image_size=20), {"embeddings/position/embedding": table})
    assert_close(larger(GOLDEN["pixel_values_20"].transpose(0, 2, 3, 1)), GOLDEN["logits_20"])


# ---- the parts


def test_patches_are_cut_row_by_row():
    images = np.arange(2 * 6 * 9 * 2).reshape(2, 6, 9, 2)
    expected = [
        [image[top : top + 3, left : left + 3].ravel() for top in (0, 3) for left in (0, 3, 6)] for image in images
    ]
    np.testing.assert_array_equal(cut_patches(jnp.asarray(images), 3), expected)


def test_what_is_classified_is_the_class_token_alone(model):
    """Though the last layer computes nothing else."""
    np.testing.assert_allclose(model.features(PIXELS), model.hidden_states(PIXELS)[-1][:, 0], rtol=1e-5, atol=1e-6)


def test_the_mean_is_of_all_patches_and_there_is_no_class_token():
    positions = golden("embeddings/position/embedding")[1:]
    model = filled(dataclasses.replace(CONFIG, pool="mean"), {"embeddings/position/embedding": positions})
    states = model.hidden_states(PIXELS)
    assert [state.shape for state in states] == [(3, 9, 16)] * 3
    np.testing.assert_allclose(states[0], GOLDEN["hidden_states"][0][:, 1:], atol=1e-5)
    kernel, bias = golden("classifier/kernel"), golden("classifier/bias")
    np.testing.assert_allclose(model(PIXELS), np.asarray(states[-1]).mean(1) @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize("position", ["sinusoidal", "rope"])
def test_positions_that_are_not_learned_have_no_table(position):
    model = ViT(dataclasses.replace(CONFIG, position=position), nnx.Rngs(0))
    assert not any("position" in path for path in paths(parameters.split(model)[1]))
    first = np.asarray(model.hidden_states(np.zeros((1, 12, 12, 3), np.float32))[0])[0, 1:]
    table = sinusoidal_positions(10, 16)[1:] if position == "sinusoidal" else np.zeros((9, 16))
    np.testing.assert_allclose(first - table, 0, atol=1e-6)
    moved = [model.hidden_states(np.roll(PIXELS, by, 1))[-1][:, 0] for by in (0, 4)]
    assert np.abs(np.asarray(moved[0] - moved[1])).max() > 1e-4, "the same patches in other places"


def test_a_branch_is_multiplied_by_its_scale():
    """The same as scaling what the branch's last map gives."""
    scaled = {path: golden(path) for path in paths(parameters.split(filled(CONFIG))[1])}
    scales = {}
    draw = np.random.default_rng(0)
    for layer, (branch, last) in itertools.product(range(2), (("attention", "output"), ("mlp", "down"))):
        scale = draw.normal(size=16).astype(np.float32)
        scales[f"encoder/layers/{layer}/{branch}_scale/scale"] = scale
        for leaf in ("kernel", "bias"):
            path = f"encoder/layers/{layer}/{branch}/{last}/{leaf}"
            scaled[path] = scaled[path] * scale
    ours, equal = filled(dataclasses.replace(CONFIG, layer_scale=0.1), scales), filled(CONFIG, scaled)
    assert_close(ours(PIXELS), np.asarray(equal(PIXELS)))
    fresh = parameters.flatten(parameters.split(ViT(ours.config, nnx.Rngs(0)))[1])
    assert {float(x) for path in scales for x in fresh[path]} == {np.float32(0.1)}


def test_stochastic_depth_passes_over_whole_rows_and_scales_the_others():
    config = dataclasses.replace(CONFIG, num_layers=3, stochastic_depth=0.5)
    layers = ViT(config, nnx.Rngs(0)).encoder.layers
    assert [layer.passed_over for layer in layers] == [0, 0.25, 0.5]
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(64, 5, 16)), jnp.float32)
    positions = jnp.zeros((64, 5), int)
    sight = Sight(positions, positions)

    def attended(layer, x):
        normed = layer.attention_norm(x)
        return layer.attention(normed, positions, layer.attention.keys_and_values(normed, positions), sight)

    for layer, share in zip(layers, (0, 0.25, 0.5), strict=True):
        outcomes = []
        for attends, computes in itertools.product((0, 1), repeat=2):
            y = x + attends / (1 - share) * attended(layer, x)
            outcomes.append(np.asarray(y + computes / (1 - share) * layer.mlp(layer.mlp_norm(y))))
        trained = np.asarray(layer(x, sight, positions, jax.random.key(1)))
        distances = np.stack([np.abs(trained - outcome).max((1, 2)) for outcome in outcomes])
        assert distances.min(0).max() < 1e-5, "each row is one of the four"
        happened = np.bincount(distances.argmin(0), minlength=4) / 64
        expected = [share**2, share * (1 - share), share * (1 - share), (1 - share) ** 2]
        np.testing.assert_allclose(happened, expected, atol=0.15 if share else 0)
        np.testing.assert_allclose(layer(x, sight, positions), attended(layer, x) + x + layer.mlp(
            layer.mlp_norm(x + attended(layer, x))), atol=1e-5)  # fmt: skip


def test_an_evaluation_knows_no_stochastic_depth_and_no_dropout(model):
    trained = filled(dataclasses.replace(CONFIG, stochastic_depth=0.5, dropout=0.3, attention_dropout=0.3))
    np.testing.assert_array_equal(trained(PIXELS), model(PIXELS))
    one, same, other = (np.asarray(trained(PIXELS, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters(model):
    narrow = ViTForImageClassification(CONFIG, nnx.Rngs(0), "bfloat16")
    wide = ViTForImageClassification(CONFIG, nnx.Rngs(0))
    logits = narrow(PIXELS)
    assert logits.dtype == jnp.float32 and narrow.hidden_states(PIXELS)[-1].dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters.split(narrow)[1]))
    np.testing.assert_allclose(logits, wide(PIXELS), atol=0.02)


def products(jaxpr) -> int:
    """Operations of all matrix products, those of inner functions too."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            result = equation.outvars[0].aval.shape
            total += 2 * int(np.prod(result)) * int(np.prod([left[axis] for axis in contracted]))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                total += products(getattr(inner, "jaxpr", inner))
    return total


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_needed_operations_are_those_of_the_products(pool):
    config = dataclasses.replace(CONFIG, pool=pool, image_size=20, num_layers=3)
    graphdef, params, state = parameters.structure(lambda rngs: ViTForImageClassification(config, rngs))
    picture = jax.ShapeDtypeStruct((1, 20, 20, 3), np.float32)
    traced = jax.make_jaxpr(lambda params, picture: nnx.merge(graphdef, params, state)(picture))(params, picture)
    assert ViTForImageClassification.flops(config) == products(traced.jaxpr)


@pytest.mark.parametrize(
    ("field", "value"), [("patch_size", 5), ("patch_size", 0), ("pool", "max"), ("channels", -1), ("num_heads", 3)]
)
def test_a_config_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(UserError) as raised:
        dataclasses.replace(CONFIG, **{field: value})
    assert raised.value.field == f"config.model.{field}"


def test_the_registry_knows_the_family():
    assert MODELS["vit"].config is ViTConfig
    assert MODELS["vit"].heads["image_classification"] is ViTForImageClassification
