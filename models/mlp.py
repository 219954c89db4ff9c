"""Multilayer perceptrons for comparison, and what the plain models for texts and pictures share.

For texts a deep averaging network (Iyyer et al. 2015, https://aclanthology.org/P15-1162): the mean of a text's word
embeddings, then hidden layers; it does not know the order of the words. For pictures hidden layers on the pixels.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.layers import ACTIVATIONS, Array, Embedding, Linear, dropout, split_key


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """What the plain models share. Only word embeddings need a deviation: maps take theirs from their inputs."""

    num_layers: int = 2
    hidden_size: int = 128
    dropout: float = 0.1  # on the word embeddings, between the layers and before the classifier
    initializer_range: float = 0.1  # of the word embedding
    vocab_size: int = 0  # for texts: rows of the word embedding; 0: the tokenizer's, rounded up to 64
    num_labels: int = 0  # outputs of the classifier; 0: as many as the training labels need

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size"):
            self._check(name, getattr(self, name) >= 1, "Give a number above 0.")
        for name in ("vocab_size", "num_labels"):
            self._check(name, getattr(self, name) >= 0, "Give a number above 0, or 0 to derive it.")
        self._check("dropout", 0 <= self.dropout < 1, "Give a share from 0 to below 1.")
        self._check("initializer_range", self.initializer_range > 0, "Give a number above 0.")

    def _check(self, name: str, good: bool, mend: str) -> None:
        if not good:
            raise UserError(f"config.model.{name}", repr(getattr(self, name)), mend)


@dataclasses.dataclass(frozen=True)
class MlpConfig(BaselineConfig):
    activation: str = "relu"  # gelu | gelu_tanh | relu | silu
    image_size: int = 0  # for pictures: their height and width; 0: those of the data
    channels: int = 0  # for pictures: 1 for grey, 3 for colours; 0: those of the data

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("activation", self.activation in ACTIVATIONS, f"Choose {', '.join(ACTIVATIONS)}.")
        for name in ("image_size", "channels"):
            self._check(name, getattr(self, name) >= 0, "Give a number above 0, or 0 to derive it.")


class Words(nnx.Module):
    """One vector a word and no positions: tokens [batch, length] to [batch, length, hidden]."""

    def __init__(self, config: BaselineConfig, hidden: int, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.word = Embedding(config.vocab_size, hidden, stddev=config.initializer_range, rngs=rngs)

    def __call__(self, tokens: Array, dtype: jnp.dtype, key: Array | None = None) -> Array:
        return dropout(self.word(tokens, dtype), self.dropout, key)


def mean_of_texts(hidden: Array, segment_ids: Array, texts: int) -> Array:
    """The mean over each text's tokens, of the texts 1 … `texts`; zeros where a row has no such text.

    Args:
        hidden: [batch, length, hidden]; `segment_ids` [batch, length].

    Returns:
        [batch, texts, hidden]; it is summed in float32.
    """
    inside = of_texts(segment_ids, texts)
    # A matrix product: unlike sums by index it takes the same order each time, on an accelerator too.
    total = jnp.einsum("btl,blh->bth", inside.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32)
    return (total / jnp.maximum(inside.sum(-1, keepdims=True), 1)).astype(hidden.dtype)


def max_of_texts(hidden: Array, segment_ids: Array, texts: int) -> Array:
    """The maximum over each text's tokens; as `mean_of_texts`."""

    def of_row(hidden: Array, segments: Array) -> Array:
        return jax.ops.segment_max(hidden, segments, texts + 1)[1:]  # without the padding's

    # Row by row, so that rows may lie on different devices; float32, in which the gradient counts equal maxima exactly.
    greatest = jax.vmap(of_row)(hidden.astype(jnp.float32), segment_ids)
    present = of_texts(segment_ids, texts).any(-1, keepdims=True)
    return jnp.where(present, greatest, 0).astype(hidden.dtype)


def of_texts(segment_ids: Array, texts: int) -> Array:
    """Which places [batch, length] belong to the texts 1 … `texts`: Booleans [batch, texts, length]."""
    return segment_ids[:, None, :] == jnp.arange(1, texts + 1)[:, None]


class TextLayers(nnx.Module):
    """Layers `(x, segment_ids) -> x` on [batch, length, hidden], one behind the other, with dropout between them."""

    def __init__(self, layers: Sequence[nnx.Module], dropout: float):
        self.layers = nnx.List(layers)
        self.dropout = dropout

    def __call__(self, x: Array, segment_ids: Array, key: Array | None = None) -> list[Array]:
        """The input and each layer's output."""
        states = [x]
        # The input has had its dropout with the embeddings.
        keys = [None, *split_key(key, len(self.layers) - 1)]
        for layer, layer_key in zip(self.layers, keys, strict=True):
            states.append(layer(dropout(states[-1], self.dropout, layer_key), segment_ids))
        return states


class TextClassifier(nnx.Module):
    """Word embeddings, layers on them, a vector for each text and a classifier; parameters are float32.

    A batch is a mapping of int32 arrays [batch, length]: `tokens`, and `segment_ids`, 0 for padding and else the number
    of the packed text, from 1.

    Args:
        words: the width of the embeddings; `width` that of the last of the `layers`.
        dtype: of the computation.
    """

    def __init__(
        self,
        config: BaselineConfig,
        words: int,
        layers: Sequence[nnx.Module],
        width: int,
        rngs: nnx.Rngs,
        dtype: str,
    ):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embeddings = Words(config, words, rngs)
        self.encoder = TextLayers(layers, config.dropout)
        self.classifier = Linear(width, config.num_labels, stddev=width**-0.5, rngs=rngs)

    def hidden_states(self, batch: Mapping[str, Array], key: Array | None = None) -> list[Array]:
        """The embeddings [batch, length, words] and the output of each layer [batch, length, width]."""
        keys = split_key(key, 2)
        words = self.embeddings(batch["tokens"], self.dtype, keys[0])
        return self.encoder(words, batch["segment_ids"], keys[1])

    def __call__(self, batch: Mapping[str, Array], first_positions: Array, key: Array | None = None) -> Array:
        """Logits [batch, texts, num_labels], float32, of the texts that begin at `first_positions` [batch, texts]."""
        keys = split_key(key, 2)
        hidden = self.hidden_states(batch, keys[0])[-1]
        texts = self._pooled(hidden, batch["segment_ids"], first_positions)
        return self.classifier(dropout(texts, self.config.dropout, keys[1])).astype(jnp.float32)

    @abc.abstractmethod
    def _pooled(self, hidden: Array, segment_ids: Array, first_positions: Array) -> Array:
        """[batch, length, width] to [batch, texts, width]."""


class HiddenLayers(nnx.Module):
    """Linear maps of one width, each with its activation and dropout: [..., inputs] to [..., hidden]."""

    def __init__(self, config: MlpConfig, inputs: int, rngs: nnx.Rngs):
        self.activation, self.dropout = config.activation, config.dropout
        width = config.hidden_size
        # A deviation of sqrt(2 / inputs) keeps the size of what passes a rectifier (He et al. 2015, arXiv:1502.01852).
        sizes = [inputs] + [width] * (config.num_layers - 1)
        self.layers = nnx.List([Linear(size, width, stddev=math.sqrt(2 / size), rngs=rngs) for size in sizes])

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = dropout(ACTIVATIONS[self.activation](layer(x)), self.dropout, layer_key)
        return x

    @staticmethod
    def flops(config: MlpConfig, inputs: int) -> int:
        """Floating-point operations of the matrix products on one vector."""
        width = config.hidden_size
        return 2 * (inputs + (config.num_layers - 1) * width) * width


class MlpForSequenceClassification(nnx.Module):
    """The deep averaging network; parameters are float32, `dtype` is that of the computation.

    A batch is a mapping of int32 arrays [batch, length]: `tokens`, and `segment_ids`, 0 for padding and else the number
    of the packed text, from 1.
    """

    def __init__(self, config: MlpConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        width = config.hidden_size
        self.embeddings = Words(config, width, rngs)
        self.encoder = HiddenLayers(config, width, rngs)
        self.classifier = Linear(width, config.num_labels, stddev=width**-0.5, rngs=rngs)

    def hidden_states(self, batch: Mapping[str, Array], key: Array | None = None) -> list[Array]:
        """The embeddings [batch, length, hidden] alone: behind them there are no tokens, but texts."""
        return [self.embeddings(batch["tokens"], self.dtype, key)]

    def __call__(self, batch: Mapping[str, Array], first_positions: Array, key: Array | None = None) -> Array:
        """Logits [batch, texts, num_labels], float32, of the texts that begin at `first_positions` [batch, texts]."""
        keys = split_key(key, 2)
        (words,) = self.hidden_states(batch, keys[0])
        means = mean_of_texts(words, batch["segment_ids"], first_positions.shape[1])
        return self.classifier(self.encoder(means, keys[1])).astype(jnp.float32)

    @staticmethod
    def flops(config: MlpConfig, length: int, texts: int) -> int:
        """Floating-point operations of the matrix products, the mean's too, of one forward pass over one row."""
        width = config.hidden_size
        return texts * (2 * length * width + HiddenLayers.flops(config, width) + 2 * width * config.num_labels)


class MlpForImageClassification(nnx.Module):
    """Hidden layers on all pixels at once; parameters are float32, `dtype` is that of the computation."""

    def __init__(self, config: MlpConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.encoder = HiddenLayers(config, config.image_size**2 * config.channels, rngs)
        self.classifier = Linear(config.hidden_size, config.num_labels, stddev=config.hidden_size**-0.5, rngs=rngs)

    def features(self, images: Array, key: Array | None = None) -> Array:
        """What is classified, [batch, hidden]."""
        return self.encoder(images.reshape(len(images), -1).astype(self.dtype), key)

    def __call__(self, images: Array, key: Array | None = None) -> Array:
        """Logits [batch, num_labels], float32, of normalised `images` [batch, image_size, image_size, channels]."""
        return self.classifier(self.features(images, key)).astype(jnp.float32)

    @staticmethod
    def flops(config: MlpConfig) -> int:
        """Floating-point operations of the matrix products of one forward pass over one picture."""
        hidden = HiddenLayers.flops(config, config.image_size**2 * config.channels)
        return hidden + 2 * config.hidden_size * config.num_labels
