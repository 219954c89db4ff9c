"""ViT (Dosovitskiy et al. 2020, arXiv:2010.11929): a pre-norm Transformer encoder that reads patches of a picture.

Equal to transformers' ViTModel and ViTForImageClassification on the same weights; mean pooling, stochastic depth, layer
scale and the encoder's other options are there for ablations.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from errors import UserError
from models.layers import Array, Embedding, Linear, dropout, sinusoidal_positions, split_key
from models.transformer import Stack, TransformerConfig, encoder_flops


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    norm: str = "pre"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    patch_size: int = 4  # the side of a patch
    pool: str = "cls"  # what is classified: the class token's last state (cls), or the mean of the patches' (mean)
    image_size: int = 0  # the side of a picture; 0: the data's
    channels: int = 0  # of a picture; 0: the data's
    num_labels: int = 0  # outputs of the head; 0: as many as the training labels need

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "channels", "num_labels"):
            if getattr(self, name) < 0:
                mend = "Give a number above 0, or 0 to derive it."
                raise UserError(f"config.model.{name}", getattr(self, name), mend)
        if self.patch_size < 1 or self.image_size % self.patch_size:
            value = f"{self.patch_size} does not divide pictures of {self.image_size} × {self.image_size}"
            mend = "Choose a divisor, or bring the pictures to another size: config.data.image_size"
            raise UserError("config.model.patch_size", value, mend)
        if self.pool not in ("cls", "mean"):
            raise UserError("config.model.pool", repr(self.pool), "Choose cls or mean.")

    @property
    def patches(self) -> int:
        """How many a picture has."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def length(self) -> int:
        """How many places the encoder sees: the patches, before them the class token if there is one."""
        return self.patches + (self.pool == "cls")


class PatchEmbeddings(nnx.Module):
    """Patches as tokens: a linear map of each one's pixels, and its place."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        self.config = config
        width, stddev = config.hidden_size, config.initializer_range
        inputs = config.patch_size**2 * config.channels
        # As the paper's own code has it: what enters is as large as the pixels are, whatever the size of a patch.
        self.patch = Linear(inputs, width, stddev=max(inputs, 1) ** -0.5, rngs=rngs)
        init = nnx.initializers.truncated_normal(stddev)
        cls = config.pool == "cls"
        self.class_token = nnx.Param(init(rngs.params(), (width,), jnp.float32)) if cls else None
        learned = config.position == "learned"
        self.position = Embedding(config.length, width, stddev=stddev, rngs=rngs) if learned else None

    def __call__(self, images: Array) -> Array:
        """[batch, height, width, channels] to [batch, places, hidden]."""
        x = self.patch(cut_patches(images, self.config.patch_size))
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        if self.position is not None:
            return x + self.position.embedding[...].astype(x.dtype)
        if self.config.position == "sinusoidal":
            return x + jnp.asarray(sinusoidal_positions(self.config.length, x.shape[-1]), x.dtype)
        return x


class ViT(nnx.Module):
    """The backbone. Pictures are floats [batch, image_size, image_size, channels], normalised."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embeddings = PatchEmbeddings(config, rngs)
        self.encoder = Stack(config, rngs)

    def hidden_states(self, images: Array, key: Array | None = None, places: Array | None = None) -> list[Array]:
        """The embeddings and the output of each layer: num_layers + 1 arrays [batch, places, hidden].

        Args:
            places: [batch, asked]; the last array is then [batch, asked, hidden], of these places alone.
        """
        keys = split_key(key, 2)
        x = dropout(self.embeddings(images.astype(self.dtype)), self.config.dropout, keys[0])
        one_picture = jnp.ones(x.shape[:2], jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return self.encoder(x, one_picture, positions, keys[1], places)

    def features(self, images: Array, key: Array | None = None) -> Array:
        """What is classified, [batch, hidden]."""
        if self.config.pool == "mean":
            return self.hidden_states(images, key)[-1].mean(1)
        return self.hidden_states(images, key, jnp.zeros((len(images), 1), jnp.int32))[-1][:, 0]


class ViTForImageClassification(ViT):
    """The backbone with one linear map on what is pooled."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(config, rngs, dtype)
        self.classifier = Linear(config.hidden_size, config.num_labels, stddev=config.initializer_range, rngs=rngs)

    def __call__(self, images: Array, key: Array | None = None) -> Array:
        """Logits [batch, num_labels], float32."""
        return self.classifier(self.features(images, key)).astype(jnp.float32)

    @staticmethod
    def flops(config: ViTConfig) -> int:
        """Floating-point operations of the matrix products of one forward pass over one picture."""
        embeddings = config.patches * config.patch_size**2 * config.channels * config.hidden_size
        encoder = encoder_flops(config, config.length, asked=config.pool == "cls")
        return encoder + 2 * (embeddings + config.hidden_size * config.num_labels)


def cut_patches(images: Array, size: int) -> Array:
    """[batch, height, width, channels] to [batch, patches, size · size · channels], row by row from the upper left."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def resize_positions(table: np.ndarray, patches: int) -> np.ndarray:
    """Learned positions [places, hidden] for pictures of another size, with so many patches.

    The grid of positions is interpolated bicubically, as PyTorch and with it transformers' `interpolate_pos_encoding`
    does: Keys' kernel with a = -0.75 between the centres of the patches, the border repeated. A class token's position,
    which there is if one more place than a square is there, stays.
    """
    extra = len(table) - int(len(table) ** 0.5) ** 2
    old, new = int((len(table) - extra) ** 0.5), int(patches**0.5)
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, min(max(tap, 0), old - 1)] += _cubic(abs(centre - tap))
    grid = table[extra:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("ai,bj,ijh->abh", weights, weights, grid).reshape(patches, -1)
    return np.concatenate([table[:extra], resized.astype(table.dtype)])


def _cubic(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0
