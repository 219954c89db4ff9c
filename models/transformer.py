"""The Transformer stack (Vaswani et al. 2017, arXiv:1706.03762): attention, feed-forward, blocks; one stack for encoder
and decoder.

Post-norm is the paper's order and BERT's; pre-norm moves each norm to the front of its branch and adds one at the end.
Rows may be packed: `segment_ids` [batch, length] says which document a token belongs to, and no token sees another's.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.attention import Sight, attend, mix, probabilities
from models.layers import ACTIVATIONS, Array, LayerNorm, LayerScale, Linear, dropout, rotate, split_key


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
    stochastic_depth: float = 0.0  # share of the rows that the last layer's branches pass over; less below, 0 at first
    layer_scale: float = 0.0  # what each branch is multiplied with at first, channel by channel; 0: not at all
    remat: str = "none"  # what the way back computes anew, to save memory: none | dots, all but products | full, all
    scan: bool = False  # compile one layer for all of them: deep models compile in the time of shallow ones
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02

    @property
    def residual_stddev(self) -> float:
        """Of the first weights of the maps that end a branch."""
        return self.initializer_range

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
            ("remat", tuple(REMAT)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"config.model.{name}", repr(getattr(self, name)), f"Choose {', '.join(choices)}.")
        if self.position == "rope" and (self.hidden_size // self.num_heads) % 2:
            raise UserError("config.model.position", "rope needs an even width per head", "Change num_heads.")
        if self.scan and self.stochastic_depth:
            raise UserError("config.model.scan", "true with stochastic_depth", "Layers that differ are not one.")
        if not self.layer_scale >= 0:
            raise UserError("config.model.layer_scale", self.layer_scale, "Give a small number such as 0.1, or 0.")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.model.{name}", getattr(self, name), "Give a share from 0 to below 1.")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not getattr(self, name) > 0:
                raise UserError(f"config.model.{name}", getattr(self, name), "Give a number above 0.")


# What of a layer is kept for the way back, beside its input (Chen et al. 2016, arXiv:1604.06174).
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Memory(NamedTuple):
    """What a decoder looks at across: the encoder's output [batch, source, hidden] and its segments [batch, source]."""

    hidden: Array
    segment_ids: Array


# What attentions look at, filled while a model is called: "self" and "cross", a layer's [batch, heads, asked, length].
Watched = dict[str, list[Array]]


class Cache(NamedTuple):
    """What one attention looks at: keys [batch, heads, head_dim, slots], values [batch, heads, slots, head_dim].

    So the products of a decoding step read both as they lie in memory.
    """

    keys: Array
    values: Array

    def written(self, new: "Cache", slot: Array | int) -> "Cache":
        """With new keys and values in the slots from `slot` on."""
        keys = jax.lax.dynamic_update_slice_in_dim(self.keys, new.keys, slot, 3)
        return Cache(keys, jax.lax.dynamic_update_slice_in_dim(self.values, new.values, slot, 2))

    def widened(self, slots: int) -> "Cache":
        """With room for so many slots."""
        more = (0, slots - self.values.shape[2])
        none = (0, 0)
        return Cache(jnp.pad(self.keys, (none, none, none, more)), jnp.pad(self.values, (none, none, more, none)))


class Attention(nnx.Module):
    """Multi-head attention; rotary where the config says so and the keys have positions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        def linear(stddev: float = config.initializer_range) -> Linear:
            return Linear(config.hidden_size, config.hidden_size, stddev=stddev, rngs=rngs)

        self.config = config
        self.query, self.key, self.value, self.output = linear(), linear(), linear(), linear(config.residual_stddev)

    def keys_and_values(self, source: Array, positions: Array | None) -> Cache:
        """Of what is looked at, [batch, length, hidden]."""
        # Heads go before length: XLA's CPU products run four times faster in this layout than with heads inside.
        keys, values = (self._split_heads(layer(source)) for layer in (self.key, self.value))
        return Cache(self._rotated(keys, positions).swapaxes(2, 3), values)

    def __call__(
        self,
        asking: Array,
        positions: Array | None,
        seen: Cache,
        sight: Sight | Array,
        key: Array | None = None,
        watched: list[Array] | None = None,
    ) -> Array:
        """What is seen, [batch, asked, hidden].

        Args:
            asking: [batch, asked, hidden]; `positions` [batch, asked] are theirs.
            sight: which keys they see, or Booleans that spread to [batch, heads, asked, length].
            key: draws the dropout of the probabilities.
            watched: the probabilities, float32 [batch, heads, asked, length], are added to it.
        """
        queries = self._rotated(self._split_heads(self.query(asking)), positions)
        queries = queries * queries.shape[-1] ** -0.5
        rate = self.config.attention_dropout
        if isinstance(sight, Sight) and watched is None:
            return self.output(self._join_heads(attend(queries, *seen, sight, rate, key)))
        looks = probabilities(queries, seen.keys, sight.visible() if isinstance(sight, Sight) else sight)
        if watched is not None:
            watched.append(looks)
        return self.output(self._join_heads(mix(looks, seen.values, rate, key)))

    def _rotated(self, heads: Array, positions: Array | None) -> Array:
        return rotate(heads, positions) if self.config.position == "rope" and positions is not None else heads

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
        width, inner = config.hidden_size, config.intermediate_size
        self.up = Linear(width, inner, stddev=config.initializer_range, rngs=rngs)
        self.down = Linear(inner, width, stddev=config.residual_stddev, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Self-attention, in a decoder cross-attention, and feed-forward, each a residual branch with its norm.

    Args:
        passed_over: the share of rows that a branch adds nothing to in training (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, crosses: bool = False, passed_over: float = 0.0):
        def norm() -> LayerNorm:
            return LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon)

        def scale() -> LayerScale | None:
            return LayerScale(config.hidden_size, config.layer_scale) if config.layer_scale else None

        self.config, self.passed_over = config, passed_over
        self.attention, self.attention_norm, self.attention_scale = Attention(config, rngs), norm(), scale()
        self.cross_attention = Attention(config, rngs) if crosses else None
        self.cross_norm = norm() if crosses else None
        self.cross_scale = scale() if crosses else None
        self.mlp, self.mlp_norm, self.mlp_scale = FeedForward(config, rngs), norm(), scale()

    def __call__(
        self,
        x: Array,
        sight: Sight,
        positions: Array,
        key: Array | None = None,
        places: Array | None = None,
        memory: Cache | None = None,
        memory_sight: Sight | None = None,
        watched: Watched | None = None,
    ) -> Array:
        """[batch, length, hidden] to the same, or to [batch, asked, hidden] at `places` [batch, asked] alone.

        Args:
            sight: which of the row's places each of them (or of `places`) sees; `memory_sight`: which of memory's.
            watched: the probabilities of the attentions are added to it.
        """
        keys = split_key(key, 5)

        def look(x: Array) -> Array:
            seen = self.attention.keys_and_values(x, positions)
            asking, at = _take(x, places), _take(positions, places)
            return self.attention(asking, at, seen, sight, keys[0], None if watched is None else watched["self"])

        x = self._add(look, x, self.attention_norm, self.attention_scale, keys[1], places)
        if memory is not None:
            x = self._look_across(x, memory, memory_sight, keys[3:], watched)
        return self._add(self.mlp, x, self.mlp_norm, self.mlp_scale, keys[2])

    def advance(
        self,
        x: Array,
        visible: Array,
        positions: Array,
        cache: Cache,
        slot: Array,
        memory: Cache | None = None,
        memory_visible: Array | None = None,
    ) -> tuple[Array, Cache]:
        """New places [batch, new, hidden] behind those in the cache: what they become, and the cache with them.

        Args:
            visible: which of the cache's places each of them sees, [batch, 1, new, slots].
            cache: of the self-attention; the new places take the slots from `slot` on.
            memory: keys and values of the cross-attention.
        """

        def look(x: Array) -> Array:
            nonlocal cache
            cache = cache.written(self.attention.keys_and_values(x, positions), slot)
            return self.attention(x, positions, cache, visible)

        x = self._add(look, x, self.attention_norm, self.attention_scale)
        if memory is not None:
            x = self._look_across(x, memory, memory_visible)
        return self._add(self.mlp, x, self.mlp_norm, self.mlp_scale), cache

    def remember(self, hidden: Array) -> Cache:
        """What the cross-attention looks at, of an encoder's output [batch, length, hidden]."""
        assert self.cross_attention is not None, "the block does not look across"
        return self.cross_attention.keys_and_values(hidden, None)

    def _look_across(
        self,
        x: Array,
        memory: Cache,
        sight: Sight | Array | None,
        keys: Sequence[Array | None] = (None, None),
        watched: Watched | None = None,
    ) -> Array:
        """x [batch, asked, hidden] with what it sees of the memory; the keys draw both dropouts."""
        assert self.cross_attention is not None and self.cross_norm is not None and sight is not None
        attention = self.cross_attention

        def cross(x: Array) -> Array:
            return attention(x, None, memory, sight, keys[0], None if watched is None else watched["cross"])

        return self._add(cross, x, self.cross_norm, self.cross_scale, keys[1])

    def _add(
        self,
        branch: Callable[[Array], Array],
        x: Array,
        norm: LayerNorm,
        scale: LayerScale | None,
        key: Array | None = None,
        places: Array | None = None,
    ) -> Array:
        """x, at `places`, and what the branch makes of it; normed behind or before."""
        before, behind = (norm, _same) if self.config.norm == "pre" else (_same, norm)
        added = dropout(branch(before(x)), self.config.dropout, key)
        if scale is not None:
            added = scale(added)
        if key is not None and self.passed_over:
            added *= dropout(jnp.ones((len(x), 1, 1), x.dtype), self.passed_over, jax.random.fold_in(key, 1))
        return behind(_take(x, places) + added)


class Stack(nnx.Module):
    """Blocks, one behind the other: an encoder, or a decoder; the pre-norm variant ends with a norm of its own.

    Args:
        causal: no place sees one behind it.
        crosses: each block looks at a memory as well.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, *, causal: bool = False, crosses: bool = False):
        self.causal, self.remat, self.scan = causal, config.remat, config.scan
        shares = [config.stochastic_depth * i / max(1, config.num_layers - 1) for i in range(config.num_layers)]
        self.layers = nnx.List([Block(config, rngs, crosses, share) for share in shares])
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon) if config.norm == "pre" else None

    def __call__(
        self,
        x: Array,
        segment_ids: Array,
        positions: Array,
        key: Array | None = None,
        places: Array | None = None,
        memory: Memory | None = None,
        watched: Watched | None = None,
    ) -> list[Array]:
        """All hidden states, the input first: num_layers + 1 arrays [batch, length, hidden]; the last is the output.

        Args:
            places: [batch, asked]; the last state is then [batch, asked, hidden], of these places alone, and most of
                the last layer's work is saved.
            memory: of a crossing stack; a place sees the memory's places of its own segment.
            watched: the attention probabilities of each layer are added to it.
        """

        def apply(layer: Block, x: Array, key: Array | None, asked: Array | None = None) -> Array:
            segments = _take(segment_ids, asked)
            numbers = jnp.arange(segment_ids.shape[1])[None] if asked is None else asked
            sight = Sight(segments, segment_ids, numbers if self.causal else None)
            across = None if memory is None else layer.remember(memory.hidden)
            there = None if memory is None else Sight(segments, memory.segment_ids)
            return layer(x, sight, positions, key, asked, across, there, watched)

        def run(layer: Block, *given: Any) -> Array:
            if self.remat == "none" or watched is not None:
                return apply(layer, *given)
            return jax.checkpoint(functools.partial(apply, layer), policy=REMAT[self.remat])(*given)

        states, layers = [x], list(self.layers)
        keys = split_key(key, len(layers))
        # The last one is not like the others where it is asked at some places alone.
        alike = len(layers) - (places is not None) if self.scan and watched is None else 0
        if alike > 1:
            states += _scan(run, layers[:alike], x, keys[:alike])
        for i, layer in list(enumerate(layers))[len(states) - 1 :]:
            states.append(run(layer, states[-1], keys[i], places if i == len(layers) - 1 else None))
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return states

    def advance(
        self,
        x: Array,
        visible: Array,
        positions: Array,
        caches: Sequence[Cache],
        slot: Array,
        memories: Sequence[Cache | None] = (),
        memory_visible: Array | None = None,
    ) -> tuple[Array, list[Cache]]:
        """The output of new places [batch, new, hidden], and the caches of all layers with them; as Block's."""
        advanced = []
        for i, layer in enumerate(self.layers):
            memory = memories[i] if memories else None
            x, cache = layer.advance(x, visible, positions, caches[i], slot, memory, memory_visible)
            advanced.append(cache)
        return x if self.norm is None else self.norm(x), advanced

    def remember(self, hidden: Array) -> list[Cache]:
        """What the cross-attention of each layer looks at, computed once, of an encoder's output."""
        return [layer.remember(hidden) for layer in self.layers]


def empty_caches(config: TransformerConfig, batch: int, slots: int, dtype: jnp.dtype) -> list[Cache]:
    """A cache for each layer, with room for so many places."""
    heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
    keys, values = (batch, heads, head_dim, slots), (batch, heads, slots, head_dim)
    return [Cache(jnp.zeros(keys, dtype), jnp.zeros(values, dtype)) for _ in range(config.num_layers)]


def _scan(run: Callable[..., Array], layers: Sequence[Block], x: Array, keys: Sequence[Array | None]) -> list[Array]:
    """The output of each of these layers, `run(layer, x, keys[i])`, one behind the other in a loop of one program."""
    graphdef = nnx.split(layers[0])[0]
    states = [nnx.split(layer)[1] for layer in layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(states, keys, strict=True))

    def step(x: Array, own: tuple[Any, Array | None]) -> tuple[Array, Array]:
        state, key = own
        x = run(nnx.merge(graphdef, state), x, key)
        return x, x

    _, outputs = jax.lax.scan(step, x, stacked)
    return list(outputs)


def _same(x: Array) -> Array:
    return x


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


def decoder_flops(config: TransformerConfig, length: int, source_length: int) -> int:
    """The same of a stack that looks at a memory as well, over rows of such lengths."""
    width = config.hidden_size
    cross = 2 * length * width**2 + 2 * source_length * width**2 + 2 * length * source_length * width
    return encoder_flops(config, length) + 2 * config.num_layers * cross
