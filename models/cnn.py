"""Convolutional networks for comparison.

For texts that of Kim 2014 (arXiv:1408.5882): convolutions of several widths over the word embeddings, and of each
feature the maximum over the text. For pictures a plain network of 3×3 convolutions and 2×2 maxima.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers import ACTIVATIONS, Array, Linear, add_bias, dropout, split_key
from models.mlp import MlpConfig, TextClassifier, max_of_texts


@dataclasses.dataclass(frozen=True)
class CnnConfig(MlpConfig):
    num_layers: int = 1  # Kim's network has 1
    hidden_size: int = 128  # of the word embedding and of each width's features; for pictures of the first layer
    widths: tuple[int, ...] = (3, 4, 5)  # for texts: how many tokens a convolution sees

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        good = bool(self.widths) and all(isinstance(width, int) and width >= 1 for width in self.widths)
        self._check("widths", good, "Give numbers of tokens above 0: (3,4,5).")


class TextConvolution(nnx.Module):
    """A convolution over the tokens of each text; kernel [width, inputs, outputs].

    At token t it sees the tokens from t - (width - 1) // 2 to t + width // 2; what lies outside of t's text is zeros.
    """

    def __init__(self, width: int, inputs: int, outputs: int, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(math.sqrt(2 / (width * inputs)))  # He et al. 2015, arXiv:1502.01852
        self.kernel = nnx.Param(init(rngs.params(), (width, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, shifted: Mapping[int, Array]) -> Array:
        """[batch, length, outputs] of what lies at each distance from each token, arrays [batch, length, inputs]."""
        kernel = self.kernel[...].astype(shifted[0].dtype)
        first = -((len(kernel) - 1) // 2)
        # One product a distance: the windows, written out, would take `width` times the memory, and more time.
        total = sum(shifted[first + i] @ kernel[i] for i in range(len(kernel)))
        return add_bias(total, self.bias[...].astype(kernel.dtype))


class TextConvolutions(nnx.Module):
    """One layer: [batch, length, inputs] to the features of all widths, [batch, length, hidden · widths]."""

    def __init__(self, config: CnnConfig, inputs: int, rngs: nnx.Rngs):
        self.widths, self.activation = config.widths, config.activation
        self.convolutions = nnx.List(
            [TextConvolution(width, inputs, config.hidden_size, rngs) for width in config.widths]
        )

    def __call__(self, x: Array, segment_ids: Array) -> Array:
        widest = max(self.widths)
        shifted = {}
        for distance in range(-((widest - 1) // 2), widest // 2 + 1):
            own = _moved(segment_ids, distance) == segment_ids
            shifted[distance] = jnp.where(own[:, :, None], _moved(x, distance), 0)
        features = [convolution(shifted) for convolution in self.convolutions]
        return ACTIVATIONS[self.activation](jnp.concatenate(features, axis=-1))


def _moved(x: Array, distance: int) -> Array:
    """What lies `distance` places behind each place of x [batch, length, …]; zeros beyond the row."""
    length = x.shape[1]
    around = [(0, 0), (max(-distance, 0), max(distance, 0))] + [(0, 0)] * (x.ndim - 2)
    return jax.lax.slice_in_dim(jnp.pad(x, around), max(distance, 0), max(distance, 0) + length, axis=1)


class CnnForSequenceClassification(TextClassifier):
    """Kim's network."""

    def __init__(self, config: CnnConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        width = config.hidden_size * len(config.widths)
        sizes = [config.hidden_size] + [width] * (config.num_layers - 1)
        layers = [TextConvolutions(config, size, rngs) for size in sizes]
        super().__init__(config, config.hidden_size, layers, width, rngs, dtype)

    def _pooled(self, hidden: Array, segment_ids: Array, first_positions: Array) -> Array:
        return max_of_texts(hidden, segment_ids, first_positions.shape[1])

    @staticmethod
    def flops(config: CnnConfig, length: int, texts: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row."""
        outputs = config.hidden_size * len(config.widths)
        inputs = config.hidden_size + (config.num_layers - 1) * outputs  # of all layers
        return 2 * (length * inputs * sum(config.widths) * config.hidden_size + texts * outputs * config.num_labels)


class ImageConvolution(nnx.Module):
    """A 3×3 convolution over pictures, zeros around them; kernel [3, 3, inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(math.sqrt(2 / (9 * inputs)))
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Array) -> Array:
        kernel, axes = self.kernel[...].astype(x.dtype), ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return add_bias(x, self.bias[...].astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class _Stage:
    size: int  # height and width of what a convolution reads
    inputs: int
    outputs: int


def _stages(config: CnnConfig) -> list[_Stage]:
    """The convolutions: behind each but the last the picture is halved and the width doubled, down to a size of 2."""
    size, inputs, outputs = config.image_size, config.channels, config.hidden_size
    stages = [_Stage(size, inputs, outputs)]
    for _ in range(config.num_layers - 1):
        inputs = outputs
        if size >= 4:
            size, outputs = size // 2, 2 * outputs
        stages.append(_Stage(size, inputs, outputs))
    return stages


class ImageEncoder(nnx.Module):
    """3×3 convolutions with maxima between them: [batch, image_size, image_size, channels] to [batch, outputs]."""

    def __init__(self, config: CnnConfig, rngs: nnx.Rngs):
        self.activation, self.dropout = config.activation, config.dropout
        self.layers = nnx.List([ImageConvolution(stage.inputs, stage.outputs, rngs) for stage in _stages(config)])

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        keys = split_key(key, len(self.layers))
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = dropout(_halved(x), self.dropout, keys[i])
            x = ACTIVATIONS[self.activation](layer(x))
        return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)


def _halved(x: Array) -> Array:
    """The maximum of each 2×2 pixels, without an odd last row or column; pictures less than 4 wide stay as they are."""
    batch, size, _, channels = x.shape
    if size < 4:
        return x
    half = size // 2
    # On the CPU the gradient of this is many times faster than that of lax.reduce_window.
    return x[:, : 2 * half, : 2 * half].reshape(batch, half, 2, half, 2, channels).max((2, 4))


class CnnForImageClassification(nnx.Module):
    """A small plain network; parameters are float32, `dtype` is that of the computation."""

    def __init__(self, config: CnnConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.encoder = ImageEncoder(config, rngs)
        width = _stages(config)[-1].outputs
        self.classifier = Linear(width, config.num_labels, stddev=width**-0.5, rngs=rngs)

    def features(self, images: Array, key: Array | None = None) -> Array:
        """What is classified, [batch, channels of the last layer]."""
        return self.encoder(images.astype(self.dtype), key)

    def __call__(self, images: Array, key: Array | None = None) -> Array:
        """Logits [batch, num_labels], float32, of normalised `images` [batch, image_size, image_size, channels]."""
        keys = split_key(key, 2)
        features = dropout(self.features(images, keys[0]), self.config.dropout, keys[1])
        return self.classifier(features).astype(jnp.float32)

    @staticmethod
    def flops(config: CnnConfig) -> int:
        """Floating-point operations of the convolutions and of the classifier for one picture."""
        stages = _stages(config)
        convolutions = sum(9 * stage.size**2 * stage.inputs * stage.outputs for stage in stages)
        return 2 * (convolutions + stages[-1].outputs * config.num_labels)
