"""ResNet against transformers' own numbers (tests/golden/make_resnet.py), its parts against loops and XLA's own."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from errors import UserError
from models import parameters
from models.convolution import BatchNorm, batch_normalize, convolution, max_pool, relu
from models.resnet import ResNet, ResNetConfig, ResNetForImageClassification
from training.rules import paths

ROOT = Path(__file__).parent.parent.parent
GOLDEN = dict(np.load(ROOT / "tests" / "golden" / "resnet.npz"))
COMMON = {"widths": (8, 16), "stem": "7x7", "stem_width": 8, "channels": 3, "image_size": 26, "num_labels": 5}
CONFIGS = {
    "basic": ResNetConfig(depths=(1, 2), block="basic", **COMMON),
    "bottleneck": ResNetConfig(depths=(2, 1), block="bottleneck", downsample_in_bottleneck=True, **COMMON),
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def theirs(path: str) -> str:
    """Hugging Face's name of one of our parameters or statistics."""
    module, _, leaf = path.rpartition("/")
    if module == "classifier":
        return f"classifier.1.{LEAVES[leaf]}"
    words = module.replace("embeddings", "embedder/embedder").split("/")
    if words[-1].isdigit():  # encoder stages S layers L convolutions K
        words[5:] = ["layer", words[6], words[5].removesuffix("s")]
    return f"resnet.{'.'.join(words).replace('norm', 'normalization')}.{LEAVES[leaf]}"


def golden(kind: str, path: str) -> np.ndarray:
    """Transformers' array for one of our leaves; `kind` is where it stands, `basic/weights`."""
    array = GOLDEN[f"{kind}/{theirs(path)}"]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request):
    """The model's name, graphdef, parameters and statistics with transformers' weights."""
    name, config = request.param, CONFIGS[request.param]
    graphdef, *trees = parameters.structure(lambda rngs: ResNetForImageClassification(config, rngs))
    filled = []
    for kind, tree in zip(("weights", "statistics"), trees, strict=True):
        arrays = [golden(f"{name}/{kind}", path) for path in paths(tree)]
        assert [a.shape for a in arrays] == [leaf.shape for leaf in jax.tree.leaves(tree)]
        assert len(arrays) == sum(key.startswith(f"{name}/{kind}/") for key in GOLDEN), "none is left over"
        filled.append(jax.tree.unflatten(jax.tree.structure(tree), map(jnp.asarray, arrays)))
    return name, graphdef, *filled


def assert_close(ours, theirs, tolerance=1e-5, **options):
    """Within `tolerance` of the largest magnitude: float32 sums in another order differ in their last digits."""
    scale = max(np.abs(theirs).max(), 1e-3)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * scale, **options)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_hidden_states_and_logits_are_those_of_transformers(loaded, mode):
    name, graphdef, params, statistics = loaded

    def run(params, key):
        # Two models: a second call in training would begin from the first one's running statistics.
        one, other = (nnx.merge(graphdef, params, statistics) for _ in range(2))
        return one.hidden_states(nhwc(GOLDEN["pixel_values"]), key), other(nhwc(GOLDEN["pixel_values"]), key)

    states, logits = jax.jit(run)(params, jax.random.key(0) if mode == "train" else None)
    assert len(states) == 3
    for place, state in enumerate(states):
        assert_close(state, nhwc(GOLDEN[f"{name}/{mode}/hidden_states/{place}"]))
    assert_close(logits, GOLDEN[f"{name}/{mode}/logits"])


def test_gradients_and_new_running_statistics_are_those_of_transformers(loaded):
    name, graphdef, params, statistics = loaded
    labels = GOLDEN["labels"]

    def loss(model, images, key):
        chosen = jax.nn.log_softmax(model(images, key))[np.arange(len(labels)), labels]
        return -chosen.mean()

    forward = parameters.functional(graphdef, loss)
    step = jax.jit(jax.value_and_grad(forward, has_aux=True))
    (value, new), gradients = step(params, statistics, nhwc(GOLDEN["pixel_values"]), jax.random.key(0))
    assert float(value) == pytest.approx(float(GOLDEN[f"{name}/train/loss"]), rel=1e-5)
    for kind, tree in (("grads", gradients), ("statistics", new)):
        for path, ours in parameters.flatten(tree).items():
            expected = golden(f"{name}/train/{kind}", path)
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-6, err_msg=f"{kind} {path}")


# size, stride, height, width, inputs, outputs: Winograd's, with odd and even sides; then all others
SHAPES = [(3, 1, 6, 8, 96, 96), (3, 1, 5, 7, 96, 128), (3, 1, 1, 2, 128, 96), (3, 1, 5, 6, 3, 8), (3, 2, 6, 7, 4, 6)]
SHAPES += [(3, 2, 5, 4, 48, 64), (1, 1, 4, 5, 6, 7), (1, 2, 6, 5, 6, 7), (7, 2, 9, 12, 3, 8), (5, 1, 4, 6, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolutions_and_their_gradients_are_xlas_own(shape):
    size, stride, height, width, inputs, outputs = shape
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, height, width, inputs)).astype(np.float32)
    kernel = draw.normal(size=(size, size, inputs, outputs)).astype(np.float32)

    def own(x, kernel):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(size // 2, size // 2)] * 2, **options)

    def run(function):
        def both(x, kernel):
            y, pull = jax.vjp(function, x, kernel)
            return y, *pull(jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

        return jax.jit(both)(x, kernel)

    for ours, xlas in zip(run(lambda x, kernel: convolution(x, kernel, stride)), run(own), strict=True):
        assert_close(ours, np.asarray(xlas), 2e-6)


def test_max_pooling_is_that_of_a_loop_over_windows():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    pooled = np.asarray(max_pool(x))
    assert pooled.shape == (2, 3, 3, 3)
    for i, j in np.ndindex(3, 3):
        rows, columns = (slice(max(2 * k - 1, 0), 2 * k + 2) for k in (i, j))
        np.testing.assert_array_equal(pooled[:, i, j], x[:, rows, columns].max((1, 2)))


def test_rectifying_lets_no_nan_vanish():
    x = jnp.array([-1.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(relu(x), [0, 0, 2, np.nan])
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(x[:3]), [0, 0, 1])


def normalised(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, list, list]:
    """Batch normalisation one channel after the other, in float64; and the means and the unbiased variances."""
    y, means, variances = np.zeros(x.shape), [], []
    for channel, values in enumerate(np.moveaxis(x.astype(np.float64), -1, 0)):
        means.append(values.mean())
        variances.append(values.var(ddof=1))
        y[..., channel] = (values - means[-1]) / np.sqrt(values.var() + 1e-5) * scale[channel] + bias[channel]
    return y, means, variances


def a_norm() -> tuple[BatchNorm, np.ndarray]:
    """A norm that is not at its beginning, and pictures whose mean is far from 0."""
    draw = np.random.default_rng(0)
    norm = BatchNorm(3)
    for leaf, low, high in ((norm.scale, 0.5, 2), (norm.bias, -1, 1), (norm.mean, -1, 1), (norm.variance, 0.5, 2)):
        leaf[...] = jnp.asarray(draw.uniform(low, high, 3), jnp.float32)
    return norm, (draw.normal(size=(2, 4, 5, 3)) * [1, 2, 0.1] + [5, 0, -3]).astype(np.float32)


def test_in_training_a_norm_goes_by_the_batch_and_remembers_a_tenth_of_it():
    norm, x = a_norm()
    mean, variance = np.asarray(norm.mean[...]), np.asarray(norm.variance[...])
    y, means, variances = normalised(x, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]))
    assert_close(norm(x, train=True), y)
    np.testing.assert_allclose(norm.mean[...], 0.9 * mean + 0.1 * np.array(means), rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], 0.9 * variance + 0.1 * np.array(variances), rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_norm_goes_by_the_running_statistics_in_evaluation_and_while_frozen(frozen):
    norm, x = a_norm()
    norm.frozen = frozen
    mean, variance = np.asarray(norm.mean[...]), np.asarray(norm.variance[...])
    expected = (x - mean) / np.sqrt(variance + 1e-5) * norm.scale[...] + norm.bias[...]
    assert_close(norm(x, train=frozen), np.asarray(expected))
    np.testing.assert_array_equal(norm.mean[...], mean)
    np.testing.assert_array_equal(norm.variance[...], variance)
    # The statistics are constants then: the gradient for x is the slope alone.
    slope = jax.grad(lambda x: norm(x, train=frozen).sum())(x)
    assert_close(slope, np.broadcast_to(norm.scale[...] / np.sqrt(variance + 1e-5), x.shape))


def test_the_gradient_of_a_norm_is_that_of_its_formula():
    norm, x = a_norm()
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def formula(x, scale, bias):
        return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias

    def gradients(function):
        arguments = (x, norm.scale[...], norm.bias[...])
        return jax.grad(lambda *a: (function(*a) * weights).sum(), argnums=(0, 1, 2))(*arguments)

    ours = gradients(lambda *arguments: batch_normalize(*arguments, 1e-5)[0])
    for one, other in zip(ours, gradients(formula), strict=True):
        assert_close(one, np.asarray(other), 1e-4)


SMALL = ResNetConfig(depths=(1, 1), widths=(8, 96), stem_width=8, channels=3, image_size=8, num_labels=4)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)

DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from models import parameters
from models.resnet import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(depths=(1, 2), widths=(8, 96), stem_width=8, channels=3, image_size=8, num_labels=4)
graphdef, params, statistics = parameters.split(ResNetForImageClassification(config, nnx.Rngs(0)))
images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
images[4:] += 1  # so that no device's own statistics are the batch's
loss = lambda model, images, key: jnp.square(model(images, key) - 1).sum()
step = jax.jit(jax.grad(parameters.functional(graphdef, loss), has_aux=True))
for count in (1, 4):
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*names)) for names in (["data"], []))
    trees = jax.device_put((params, statistics), everywhere)
    gradients, new = step(*trees, jax.device_put(images, rows), jax.device_put(jax.random.key(0), everywhere))
    leaves = parameters.flatten({"gradients": gradients, "statistics": new})
    np.savez(f"{sys.argv[1]}/{count}.npz", **{name.replace("/", " "): leaf for name, leaf in leaves.items()})
"""


def test_on_four_devices_statistics_and_gradients_are_those_of_one(tmp_path):
    environment = {"JAX_NUM_CPU_DEVICES": "4", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    words = [sys.executable, "-c", DEVICES, tmp_path]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, four = (dict(np.load(tmp_path / f"{count}.npz")) for count in (1, 4))
    assert len(one) > 20
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, rtol=1e-4, atol=2e-5 * max(np.abs(array).max(), 1), err_msg=name)


def test_with_a_key_it_trains_and_without_one_it_does_not():
    config = dataclasses.replace(SMALL, dropout=0.5)

    def run(key):
        """The logits of a fresh model, and whether its statistics changed."""
        model = ResNetForImageClassification(config, nnx.Rngs(0))
        return np.asarray(model(IMAGES, key)), bool(model.embeddings.norm.mean[...].any())

    np.testing.assert_array_equal(run(jax.random.key(1))[0], run(jax.random.key(1))[0])
    assert np.abs(run(jax.random.key(1))[0] - run(jax.random.key(2))[0]).max() > 1e-3, "dropout follows the key"
    assert run(jax.random.key(1))[1] and not run(None)[1]
    np.testing.assert_array_equal(run(None)[0], run(None)[0])


def test_a_picture_is_seen_alone_in_evaluation():
    model = ResNetForImageClassification(SMALL, nnx.Rngs(0))
    assert_close(model(IMAGES)[1:2], np.asarray(model(IMAGES[1:2])))
    assert model.features(IMAGES).shape == (4, 96)
    assert [state.shape[1:] for state in model.hidden_states(IMAGES)] == [(8, 8, 8), (8, 8, 8), (4, 4, 96)]


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters_and_statistics():
    wide, narrow = (ResNetForImageClassification(SMALL, nnx.Rngs(1), dtype) for dtype in ("float32", "bfloat16"))
    one, other = (model(IMAGES, jax.random.key(0)) for model in (wide, narrow))
    np.testing.assert_allclose(one, other, atol=0.05)
    _, *trees = parameters.split(narrow)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((one, other, trees)))
    assert narrow.hidden_states(IMAGES)[-1].dtype == jnp.bfloat16


def test_the_names_of_the_parameters_are_the_projects_one_language():
    _, params, statistics = parameters.structure(lambda rngs: ResNetForImageClassification(SMALL, rngs))
    names = paths(params)
    layer = "encoder/stages/1/layers/0"
    assert {"embeddings/convolution/kernel", "embeddings/norm/scale", "classifier/bias"} <= set(names)
    parts = ("convolutions/1/kernel", "norms/0/bias", "shortcut/convolution/kernel", "shortcut/norm/scale")
    assert {f"{layer}/{part}" for part in parts} <= set(names)
    assert "encoder/stages/0/layers/0/shortcut/convolution/kernel" not in names, "an identity has no parameters"
    assert sum(name.endswith("scale") for name in names) == len(paths(statistics)) / 2
    _, backbone, _ = parameters.structure(lambda rngs: ResNet(SMALL, rngs))
    assert set(paths(backbone)) == {name for name in names if not name.startswith("classifier/")}


def test_initial_weights_have_the_deviation_of_the_paper():
    config = dataclasses.replace(SMALL, depths=(1,), widths=(64,), stem_width=64, num_labels=1000)
    _, params, _ = parameters.split(ResNetForImageClassification(config, nnx.Rngs(0)))
    for path, leaf in parameters.flatten(params).items():
        if path.endswith("convolutions/0/kernel"):
            assert float(leaf.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
        elif path.endswith(("scale", "bias")):
            assert (leaf == path.endswith("scale")).all(), path


def counted(config: ResNetConfig) -> int:
    """Two for each entry of a kernel at each pixel that it is laid on, as a traced call shows them."""
    operations = 0

    def look(jaxpr):
        nonlocal operations
        for equation in jaxpr.eqns:
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):  # of what is called
                    look(value.jaxpr)
            if equation.primitive.name == "conv_general_dilated":
                _, height, width, _ = equation.outvars[0].aval.shape
                operations += 2 * height * width * equation.invars[1].aval.size
            elif equation.primitive.name == "dot_general":
                operations += 2 * equation.outvars[0].aval.size * equation.invars[1].aval.shape[0]

    graphdef, *trees = parameters.structure(lambda rngs: ResNetForImageClassification(config, rngs))
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.channels), jnp.float32)
    look(jax.make_jaxpr(lambda trees, x: nnx.merge(graphdef, *trees)(x))(trees, images).jaxpr)
    return operations


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_the_program_has(name):
    for size, stem in ((26, "3x3"), (29, "7x7")):
        config = dataclasses.replace(CONFIGS[name], image_size=size, stem=stem)
        assert ResNetForImageClassification.flops(config) == counted(config)


def test_the_known_networks_have_their_published_sizes_and_operations():
    """Torchvision's tables, whose operations are multiply-adds: 11.69 million and 1.814 · 10⁹; 25.56 and 4.089."""
    common = {"stem": "7x7", "channels": 3, "image_size": 224, "num_labels": 1000}
    small = ResNetConfig(**common)
    large = ResNetConfig(depths=(3, 4, 6, 3), widths=(256, 512, 1024, 2048), block="bottleneck", **common)
    for config, size, operations in ((small, 11_689_512, 1.814e9), (large, 25_557_032, 4.089e9)):
        _, params, _ = parameters.structure(lambda rngs, c=config: ResNetForImageClassification(c, rngs))
        assert parameters.count(params) == size
        assert ResNetForImageClassification.flops(config) / 2 == pytest.approx(operations, rel=1e-3)


BAD = {
    "depths": [(), (2, 0, 2, 2), (2, 2)],
    "widths": [(64, -1, 1, 1), (64, 128, 256, 510)],
    "dropout": [-0.1, 1.0],
    "downsample_in_bottleneck": [True],
} | {name: [-1] for name in ("block", "stem", "stem_width", "activation", "channels", "image_size", "num_labels")}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_value_is_told_with_its_field(field, value):
    with pytest.raises(UserError) as told:
        ResNetConfig(**{"block": "bottleneck" if field == "widths" else "basic"} | {field: value})
    assert told.value.field == f"config.model.{field}" and told.value.mend
