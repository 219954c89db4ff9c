"""The small parts that every family is made of: linear maps, norms, activations, dropout, position encodings.

Arrays are named by their axes: [batch, length, hidden] for activations, [batch, heads, length, head_dim] in attention.
Parameters are float32; a layer computes in the `dtype` of its input.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Array = jax.Array


# The backward passes of the next three are written by hand for the sake of XLA's CPU back end, where they take a third
# off the whole step: sums over rows run as matrix products, and a kernel's gradient comes in the kernel's own layout.


@jax.custom_vjp
def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """`x @ kernel + bias` over the last axis."""
    return x @ kernel + bias


def _dense_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = kept
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    for_x = jax.lax.dot_general(gradients, kernel, (((1,), (1,)), ((), ()))).reshape(x.shape)
    for_kernel = jax.lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))
    return for_x, for_kernel, _sum_rows(gradients)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """`x + bias` over the last axis."""
    return x + bias


@jax.custom_vjp
def scale_by(x: Array, scale: Array) -> Array:
    """`x * scale` over the last axis."""
    return x * scale


def _sum_rows(x: Array) -> Array:
    """The sum over all axes but the last."""
    rows = x.reshape(-1, x.shape[-1])
    total = jax.lax.dot(jnp.ones((1, rows.shape[0]), x.dtype), rows, preferred_element_type=jnp.float32)
    return total[0].astype(x.dtype)


# Not `dense` itself: the product shall be seen by what decides which products are kept.
dense.defvjp(lambda x, kernel, bias: (x @ kernel + bias, (x, kernel)), _dense_backward)
add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, g: (g, _sum_rows(g)))
scale_by.defvjp(lambda x, scale: (x * scale, (x, scale)), lambda kept, g: (g * kept[1], _sum_rows(g * kept[0])))


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis; kernel [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, *, stddev: float, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(stddev)
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return dense(x, self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype))


class Embedding(nnx.Module):
    """A table [entries, hidden]; ids outside of it are the host's duty to refuse (JAX clamps or gives NaN)."""

    def __init__(self, entries: int, hidden: int, *, stddev: float, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(stddev)
        self.embedding = nnx.Param(init(rngs.params(), (entries, hidden), jnp.float32))

    def __call__(self, ids: Array, dtype: jnp.dtype) -> Array:
        return self.embedding[...][ids].astype(dtype)


class WordsAndPositions(nnx.Module):
    """The embeddings that every family begins with: `word`, and `position` where positions are learned.

    Args:
        position: how a token is told its place: `learned` and `sinusoidal` add to the word, `rope` is attention's.
        rows: how many positions there are.
    """

    def __init__(self, entries: int, hidden: int, position: str, rows: int, *, stddev: float, rngs: nnx.Rngs):
        self.kind, self.rows, self.hidden = position, rows, hidden
        self.word = Embedding(entries, hidden, stddev=stddev, rngs=rngs)
        self.position = Embedding(rows, hidden, stddev=stddev, rngs=rngs) if position == "learned" else None

    def summed(self, tokens: Array, positions: Array, dtype: jnp.dtype, scale: float = 1.0) -> Array:
        """[batch, length, hidden] of tokens and positions [batch, length]; the word's part is multiplied by `scale`."""
        x = self.word(tokens, dtype)
        x = x if scale == 1.0 else x * scale
        if self.position is not None:
            return x + self.position(positions, dtype)
        if self.kind == "sinusoidal":
            return x + jnp.asarray(sinusoidal_positions(self.rows, self.hidden), dtype)[positions]
        return x


class LayerNorm(nnx.Module):
    """Ba et al. 2016, arXiv:1607.06450; the statistics are taken in float32."""

    def __init__(self, hidden: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(hidden, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(hidden, jnp.float32))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return add_bias(scale_by(normal, self.scale[...]), self.bias[...]).astype(x.dtype)


class LayerScale(nnx.Module):
    """A factor for each channel (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, hidden: int, first: float):
        self.scale = nnx.Param(jnp.full(hidden, first, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return scale_by(x, self.scale[...].astype(x.dtype))


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """`x · Φ(x)` with the exact normal distribution function (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    # Written by hand so that only x is kept for the backward pass: recomputing Φ is cheaper than storing it. Without
    # the barrier XLA would find that Φ was computed before, and store it after all.
    x = jax.lax.optimization_barrier(x)
    density = jnp.exp(-0.5 * jnp.square(x)) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return (gradient * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """A key for each of `count` uses, or as many None. One draw: each is a loop of its own in a program on the CPU."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Sets a share `rate` of `x` to zero and scales the rest by 1 / (1 - rate); `key=None` leaves `x` as it is.

    Whether an element stays depends on the key and on the element's index alone, so the mask is the same on any
    number of devices, and the backward pass computes it anew instead of keeping it in memory.
    """
    if key is None or rate == 0.0:
        return x
    return _dropout(x, jax.random.key_data(key), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: Array, seeds: Array, rate: float) -> Array:
    return jnp.where(_keep(x.shape, seeds, rate), x * (1 / (1 - rate)), 0).astype(x.dtype)


def _dropout_forward(x: Array, seeds: Array, rate: float) -> tuple[Array, Array]:
    return _dropout(x, seeds, rate), seeds


def _dropout_backward(rate: float, seeds: Array, gradient: Array) -> tuple[Array, None]:
    return _dropout(gradient, seeds, rate), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def _keep(shape: tuple[int, ...], seeds: Array, rate: float) -> Array:
    """A Boolean mask: a 32-bit hash of (element's index, two seeds) is not below `rate`.

    The mixer is C. Wellons' lowbias32 (two rounds of xor-shift and multiply); XLA fuses it into what uses the mask.
    """
    counter = jnp.uint32(0)
    for axis, size in enumerate(shape):
        counter = counter * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    h = counter * (seeds[0] | jnp.uint32(1)) + seeds[1]  # an odd multiplier permutes the 32-bit numbers
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    h = h ^ (h >> 16)
    return h >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def sinusoidal_positions(length: int, hidden: int) -> np.ndarray:
    """Table [length, hidden] of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5): sines, then cosines."""
    angles = np.arange(length)[:, None] * _wavelengths(hidden)[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def rotate(x: Array, positions: Array) -> Array:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) on queries or keys.

    Args:
        x: [batch, heads, length, head_dim]; head_dim is even.
        positions: [batch, length].
    """
    angles = positions[:, None, :, None].astype(jnp.float32) * _wavelengths(x.shape[-1])
    sine, cosine = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def _wavelengths(size: int) -> np.ndarray:
    return 10_000.0 ** (-np.arange(0, size, 2, dtype=np.float32) / size)
