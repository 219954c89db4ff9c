"""The Transformer stack (Vaswani et al. 2017, arXiv:1706.03762): attention, feed-forward, blocks, encoder.

Post-norm is the paper's order and BERT's; pre-norm moves each norm to the front of its branch and adds one at the end.
Rows may be packed: `segment_ids` [batch, length] says which document a token belongs to, and no token sees another's.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.layers import ACTIVATIONS, Array, LayerNorm, Linear, dropout, rotate


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What every Transformer family shares; sizes of 0 are derived from `hidden_size`."""

    num_layers: int = 2
    hidden_size: int = 128
    num_heads: int = 0  # 0: hidden_size / 64, at least 1
    intermediate_size: int = 0  # 0: 4 × hidden_size
    activation: str = "gelu"  # gelu | gelu_tanh | relu | silu
    norm: str = "post"  # post | pre
    position: str = "learned"  # learned | sinusoidal | rope
    dropout: float = 0.1  # on the embeddings and on each branch of a block
    attention_dropout: float = 0.1  # on the attention probabilities
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_heads == 0:
            object.__setattr__(self, "num_heads", max(1, self.hidden_size // 64))
        if self.intermediate_size == 0:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        for name in ("num_layers", "hidden_size", "num_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise UserError(f"config.model.{name}", getattr(self, name), "Give a number above 0.")
        if self.hidden_size % self.num_heads:
            raise UserError(
                "config.model.num_heads",
                f"{self.num_heads} heads do not divide hidden_size {self.hidden_size}",
                "Choose a number of heads that divides the width, or 0 for width / 64.",
            )
        for name, choices in (
            ("activation", tuple(ACTIVATIONS)),
            ("norm", ("post", "pre")),
            ("position", ("learned", "sinusoidal", "rope")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"config.model.{name}", repr(getattr(self, name)), f"Choose {', '.join(choices)}.")
        if self.position == "rope" and (self.hidden_size // self.num_heads) % 2:
            raise UserError("config.model.position", "rope needs an even width per head", "Change num_heads.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.model.{name}", getattr(self, name), "Give a share from 0 to below 1.")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not getattr(self, name) > 0:
                raise UserError(f"config.model.{name}", getattr(self, name), "Give a number above 0.")


class Attention(nnx.Module):
    """Multi-head self-attention within segments."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        def linear() -> Linear:
            return Linear(config.hidden_size, config.hidden_size, stddev=config.initializer_range, rngs=rngs)

        self.config = config
        self.query, self.key, self.value, self.output = linear(), linear(), linear(), linear()

    def __call__(
        self,
        x: Array,
        segment_ids: Array,
        positions: Array,
        key: Array | None = None,
        places: Array | None = None,
    ) -> Array:
        """[batch, length, hidden] to the same; `key` draws the dropout of the probabilities.

        Args:
            places: [batch, asked], the places that ask; the result is [batch, asked, hidden]. Without: all of them.
        """
        asking, segments, at = (_take(array, places) for array in (x, segment_ids, positions))
        # Heads go before length: XLA's CPU products run four times faster in this layout than with heads inside.
        queries = self._split_heads(self.query(asking))
        keys, values = (self._split_heads(layer(x)) for layer in (self.key, self.value))
        if self.config.position == "rope":
            queries, keys = rotate(queries, at), rotate(keys, positions)
        queries = queries * queries.shape[-1] ** -0.5
        scores = jnp.einsum("bhqd,bhkd->bhqk", queries, keys).astype(jnp.float32)
        visible = segments[:, None, :, None] == segment_ids[:, None, None, :]
        # Padding is a segment too (0) and sees itself, so that no row of the softmax is empty.
        probabilities = jax.nn.softmax(jnp.where(visible, scores, -1e30)).astype(x.dtype)
        probabilities = dropout(probabilities, self.config.attention_dropout, key)
        return self.output(self._join_heads(jnp.einsum("bhqk,bhkd->bhqd", probabilities, values)))

    def _split_heads(self, x: Array) -> Array:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.config.num_heads, -1).transpose(0, 2, 1, 3)

    def _join_heads(self, x: Array) -> Array:
        batch, _, length, _ = x.shape
        return x.transpose(0, 2, 1, 3).reshape(batch, length, self.config.hidden_size)


class FeedForward(nnx.Module):
    """Two linear maps with the activation between them."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.activation = config.activation
        stddev = config.initializer_range
        self.up = Linear(config.hidden_size, config.intermediate_size, stddev=stddev, rngs=rngs)
        self.down = Linear(config.intermediate_size, config.hidden_size, stddev=stddev, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Attention and feed-forward, each a residual branch with its norm."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention = Attention(config, rngs)
        self.attention_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon)
        self.mlp = FeedForward(config, rngs)
        self.mlp_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon)

    def __call__(
        self,
        x: Array,
        segment_ids: Array,
        positions: Array,
        key: Array | None = None,
        places: Array | None = None,
    ) -> Array:
        """[batch, length, hidden] to the same, or to [batch, asked, hidden] at `places` [batch, asked] alone."""
        keys = [None] * 3 if key is None else [jax.random.fold_in(key, i) for i in range(3)]

        def attend(x: Array) -> Array:
            return dropout(self.attention(x, segment_ids, positions, keys[0], places), self.config.dropout, keys[1])

        def transform(x: Array) -> Array:
            return dropout(self.mlp(x), self.config.dropout, keys[2])

        if self.config.norm == "post":
            x = self.attention_norm(_take(x, places) + attend(x))
            return self.mlp_norm(x + transform(x))
        x = _take(x, places) + attend(self.attention_norm(x))
        return x + transform(self.mlp_norm(x))


class Encoder(nnx.Module):
    """A stack of blocks; the pre-norm variant ends with a norm of its own."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon) if config.norm == "pre" else None

    def __call__(
        self,
        x: Array,
        segment_ids: Array,
        positions: Array,
        key: Array | None = None,
        places: Array | None = None,
    ) -> list[Array]:
        """All hidden states, the input first: num_layers + 1 arrays [batch, length, hidden]; the last is the output.

        Args:
            places: [batch, asked]; the last state is then [batch, asked, hidden], of these places alone, and most of
                the last layer's work is saved.
        """
        states = [x]
        for i, layer in enumerate(self.layers):
            layer_key = None if key is None else jax.random.fold_in(key, i)
            asked = places if i == len(self.layers) - 1 else None
            states.append(layer(states[-1], segment_ids, positions, layer_key, asked))
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return states


def _take(x: Array, places: Array | None) -> Array:
    """x [batch, length, …] at `places` [batch, asked]; all of it without."""
    if places is None:
        return x
    return jnp.take_along_axis(x, places if x.ndim == 2 else places[:, :, None], axis=1)


def encoder_flops(config: TransformerConfig, length: int, asked: int = 0) -> int:
    """Floating-point operations of the matrix products of one forward pass over one row of `length` tokens.

    Args:
        asked: at how many places the last layer's output is wanted; 0 for all.
    """
    width, inner = config.hidden_size, config.intermediate_size
    per_asked = 2 * width**2 + 2 * width * inner + 2 * length * width  # query, output, the feed-forward, attention
    keys_and_values = length * 2 * width**2
    whole = (config.num_layers - 1) * (length * per_asked + keys_and_values)
    return 2 * (whole + (asked or length) * per_asked + keys_and_values)
