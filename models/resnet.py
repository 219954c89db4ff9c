"""Residual networks (He et al. 2015, arXiv:1512.03385) and their picture classifier.

With the 7x7 stem equal to transformers' ResNetModel and ResNetForImageClassification on the same weights; the 3x3 stem
is the paper's for CIFAR's small pictures (section 4.2).
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.convolution import BatchNorm, Convolution, max_pool, relu
from models.layers import ACTIVATIONS, Array, Linear, dropout

ACTIVATE = ACTIVATIONS | {"relu": relu}
REDUCTION = 4  # a bottleneck's output is so many times as wide as its middle


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    depths: tuple[int, ...] = (2, 2, 2, 2)  # layers of each stage; every stage but the first halves the picture
    widths: tuple[int, ...] = (64, 128, 256, 512)  # output channels of each stage
    block: str = "basic"  # basic: two 3 × 3 convolutions a layer | bottleneck: 1 × 1, 3 × 3, 1 × 1
    stem: str = "3x3"  # 3x3: one convolution, for small pictures | 7x7: stride 2, then max-pooling of stride 2
    stem_width: int = 64
    downsample_in_bottleneck: bool = False  # the stride is in the first convolution, as in the paper, not the second
    activation: str = "relu"  # gelu | gelu_tanh | relu | silu
    channels: int = 0  # of the pictures; 0: the data's
    image_size: int = 0  # height and width; 0: the data's
    num_labels: int = 0  # outputs of the classifier; 0: as many as the training labels need
    dropout: float = 0.0  # before the classifier

    def __post_init__(self) -> None:
        for name in ("depths", "widths"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)  # a list, as JSON has it, would not hash
            if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
                raise UserError(f"config.model.{name}", sizes, "Give a whole number above 0 for each stage.")
        if len(self.depths) != len(self.widths):
            raise UserError(
                "config.model.depths",
                f"{len(self.depths)} stages, and widths has {len(self.widths)}",
                "Give as many depths as widths.",
            )
        for name, choices in (
            ("block", ("basic", "bottleneck")),
            ("stem", ("3x3", "7x7")),
            ("activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"config.model.{name}", repr(getattr(self, name)), f"Choose {', '.join(choices)}.")
        if self.block == "bottleneck" and any(width % REDUCTION for width in self.widths):
            mend = f"Give multiples of {REDUCTION}, or block basic."
            raise UserError("config.model.widths", f"{self.widths} with bottlenecks", mend)
        if self.downsample_in_bottleneck and self.block == "basic":
            mend = "Choose block bottleneck, or false."
            raise UserError("config.model.downsample_in_bottleneck", "true with block basic", mend)
        if self.stem_width < 1:
            raise UserError("config.model.stem_width", self.stem_width, "Give a number above 0.")
        for name in ("channels", "image_size", "num_labels"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise UserError(f"config.model.{name}", value, "Give a number above 0, or 0 to derive it.")
        if not 0 <= self.dropout < 1:
            raise UserError("config.model.dropout", self.dropout, "Give a share from 0 to below 1.")


class Shape(NamedTuple):
    """One convolution: its kernel is [size, size, inputs, outputs]."""

    size: int
    inputs: int
    outputs: int
    stride: int


class LayerShape(NamedTuple):
    """A residual layer: the convolutions of its branch, and the one of its shortcut where that is not the identity."""

    branch: tuple[Shape, ...]
    shortcut: Shape | None


def stem_shape(config: ResNetConfig) -> Shape:
    size, stride = (7, 2) if config.stem == "7x7" else (3, 1)
    return Shape(size, config.channels, config.stem_width, stride)


def stage_shapes(config: ResNetConfig) -> Iterator[list[LayerShape]]:
    """The layers of each stage."""
    inputs = config.stem_width
    for number, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        layers = []
        for place in range(depth):
            stride = 2 if number > 0 and place == 0 else 1
            branch: tuple[Shape, ...]
            if config.block == "basic":
                branch = (Shape(3, inputs, width, stride), Shape(3, width, width, 1))
            else:
                middle = width // REDUCTION
                first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
                branch = (
                    Shape(1, inputs, middle, first),
                    Shape(3, middle, middle, second),
                    Shape(1, middle, width, 1),
                )
            changes = inputs != width or stride != 1
            layers.append(LayerShape(branch, Shape(1, inputs, width, stride) if changes else None))
            inputs = width
        yield layers


class ConvolutionNorm(nnx.Module):
    """A convolution and the norm of what it gives."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.convolution = Convolution(shape.size, shape.inputs, shape.outputs, stride=shape.stride, rngs=rngs)
        self.norm = BatchNorm(shape.outputs)

    def __call__(self, x: Array, train: bool) -> Array:
        return self.norm(self.convolution(x), train)


class ResidualLayer(nnx.Module):
    """`activation(branch(x) + shortcut(x))`; in the branch the activation stands behind each norm but the last."""

    def __init__(self, shape: LayerShape, activation: str, rngs: nnx.Rngs):
        self.activation = activation
        self.convolutions = nnx.List(
            [Convolution(s.size, s.inputs, s.outputs, stride=s.stride, rngs=rngs) for s in shape.branch]
        )
        self.norms = nnx.List([BatchNorm(s.outputs) for s in shape.branch])
        self.shortcut = ConvolutionNorm(shape.shortcut, rngs) if shape.shortcut else None

    def __call__(self, x: Array, train: bool) -> Array:
        activate = ACTIVATE[self.activation]
        shortcut = x if self.shortcut is None else self.shortcut(x, train)
        for place, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(activate(x) if place else x), train)
        return activate(x + shortcut)


class Stage(nnx.Module):
    """Layers at one size of picture, which the first may halve."""

    def __init__(self, shapes: list[LayerShape], activation: str, rngs: nnx.Rngs):
        self.layers = nnx.List([ResidualLayer(shape, activation, rngs) for shape in shapes])

    def __call__(self, x: Array, train: bool) -> Array:
        for layer in self.layers:
            x = layer(x, train)
        return x


class Encoder(nnx.Module):
    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        self.stages = nnx.List([Stage(shapes, config.activation, rngs) for shapes in stage_shapes(config)])


class ResNet(nnx.Module):
    """The backbone. Pictures are float [batch, height, width, channels], already normalised.

    With a key it trains: norms go by the batch and write new running statistics. `dtype` is that of the computation;
    parameters and statistics are float32.
    """

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embeddings = ConvolutionNorm(stem_shape(config), rngs)
        self.encoder = Encoder(config, rngs)

    def hidden_states(self, images: Array, key: Array | None = None) -> list[Array]:
        """The stem's output and that of each stage, [batch, height, width, channels] each."""
        train = key is not None
        x = self.embeddings(jnp.asarray(images, self.dtype), train)
        x = ACTIVATE[self.config.activation](x)
        states = [max_pool(x) if self.config.stem == "7x7" else x]
        for stage in self.encoder.stages:
            states.append(stage(states[-1], train))
        return states

    def features(self, images: Array, key: Array | None = None) -> Array:
        """The mean over the last stage's picture, [batch, widths[-1]]."""
        last = self.hidden_states(images, key)[-1]
        return last.mean((1, 2), dtype=jnp.float32).astype(self.dtype)


class ResNetForImageClassification(ResNet):
    """The backbone with one linear map on its features."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(config, rngs, dtype)
        width = config.widths[-1]
        self.classifier = Linear(
            width, config.num_labels, stddev=(3 * width) ** -0.5, rngs=rngs
        )  # as wide as PyTorch's

    def __call__(self, images: Array, key: Array | None = None) -> Array:
        """Logits [batch, num_labels], float32."""
        features = dropout(self.features(images, key), self.config.dropout, key)
        return self.classifier(features).astype(jnp.float32)

    @staticmethod
    def flops(config: ResNetConfig) -> int:
        """Floating-point operations of the convolutions and the classifier of one forward pass over one picture."""
        total, size = 0, config.image_size

        def add(shape: Shape, size: int) -> int:
            """Counts a convolution over a picture of `size`; the size of what it gives."""
            nonlocal total
            after = -(-size // shape.stride)
            total += 2 * after**2 * shape.size**2 * shape.inputs * shape.outputs
            return after

        size = add(stem_shape(config), size)
        if config.stem == "7x7":
            size = -(-size // 2)
        for layers in stage_shapes(config):
            for layer in layers:
                if layer.shortcut:
                    add(layer.shortcut, size)
                for shape in layer.branch:
                    size = add(shape, size)
        return total + 2 * config.widths[-1] * config.num_labels
