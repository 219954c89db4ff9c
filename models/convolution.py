"""The parts of convolutional networks: convolution, batch normalisation, pooling.

Pictures are [batch, height, width, channels], kernels [height, width, inputs, outputs]. Parameters are float32; a layer
computes in the `dtype` of its input.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.layers import Array, add_bias, dense, scale_by

WINOGRAD_CHANNELS = 96  # with fewer the transforms cost what the products save, and they take memory


def convolution(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The cross-correlation of `x` with an odd kernel, padded with zeros by half the kernel as PyTorch pads."""
    size, _, inputs, outputs = kernel.shape
    if size == 1:  # each pixel for itself; what the stride leaves out is not even looked at
        return dense(x[:, ::stride, ::stride], kernel[0, 0], jnp.zeros(outputs, x.dtype))
    if not _on_cpu():  # accelerators have kernels of their own for convolutions
        return _direct(x, kernel, stride)
    # Winograd's sums would lose bfloat16's few digits.
    if size == 3 and stride == 1 and min(inputs, outputs) >= WINOGRAD_CHANNELS and x.dtype == jnp.float32:
        return winograd(x, kernel)
    return _direct_apart(x, kernel, stride)


def _direct(x: Array, kernel: Array, stride: int) -> Array:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _direct_apart(x: Array, kernel: Array, stride: int) -> Array:
    """`_direct`, whose backward pass XLA shall not mingle with what stands around it.

    For the kernel's gradient it moves the batch behind the pixels. Joined with the activation that `x` comes from, this
    took a third of a whole training step.
    """
    return _direct(x, kernel, stride)


def _direct_apart_backward(stride: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    kept, gradient = jax.lax.optimization_barrier((kept, gradient))
    return jax.vjp(lambda x, kernel: _direct(x, kernel, stride), *kept)[1](gradient)


_direct_apart.defvjp(lambda x, kernel, stride: (_direct(x, kernel, stride), (x, kernel)), _direct_apart_backward)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"  # not at import: several hosts must find each other before


# Winograd's F(2 × 2, 3 × 3) by Lavin & Gray 2015 (arXiv:1509.09308, section 4.1): 2 × 2 pixels of the output from 4 × 4
# of the input by 16 multiplications in place of 36, Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. Summed over the input's channels
# the 16 are matrix products over all tiles. In float32 the result is as exact as the plain sum's.
FROM_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)  # Bᵀ
FROM_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G
TO_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)  # Aᵀ
Grid = list[list[Array]]  # rows of columns of equal arrays


@jax.custom_vjp
def winograd(x: Array, kernel: Array) -> Array:
    """`convolution` with a 3 × 3 kernel and stride 1, as matrix products over tiles of 2 × 2 pixels.

    The backward pass transforms the input once more instead of keeping its tiles, which are four times as large.
    """
    tiles = _transform(FROM_INPUT, _pixels(_pad(x), range(4)))
    return _from_tiles(_each(_apply, tiles, _kernel_tiles(kernel)), x.shape)


def _winograd_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # Without the barrier XLA would find that the tiles were computed before, and keep them after all.
    kept, gradient = jax.lax.optimization_barrier((kept, gradient))
    x, kernel = kept
    # Both from the padded gradient, which lies in memory then: else XLA computes the norm's derivative, which it comes
    # from, anew for every pixel of a tile.
    padded = _pad(gradient)
    # The gradient for x is a convolution with the kernel turned by 180°, whose tiles are the kernel's in another order.
    turned = [[row[j] for j in (3, 1, 2, 0)] for row in [_kernel_tiles(kernel)[i] for i in (3, 1, 2, 0)]]
    tiles = _transform(FROM_INPUT, _pixels(padded, range(4)))
    for_x = _from_tiles(_each(_apply_transposed, tiles, turned), x.shape)
    inputs = _transform(FROM_INPUT, _pixels(_pad(x), range(4)))
    outputs = _transform(TO_OUTPUT.T, _pixels(padded, (1, 2)))
    for_kernel = _transform(FROM_KERNEL.T, _each(_outer, inputs, outputs))
    return for_x, jnp.stack([jnp.stack(row) for row in for_kernel])


winograd.defvjp(lambda x, kernel: (winograd(x, kernel), (x, kernel)), _winograd_backward)


def _kernel_tiles(kernel: Array) -> Grid:
    return _transform(FROM_KERNEL, [list(row) for row in kernel])


def _from_tiles(products: Grid, shape: tuple[int, ...]) -> Array:
    """The output [batch, height, width, outputs] of a picture of `shape`."""
    pixels = _transform(TO_OUTPUT, products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in pixels], axis=2)  # [batch, rows, 2, columns, 2, outputs]
    batch, rows, _, columns, _, outputs = y.shape
    return y.reshape(batch, 2 * rows, 2 * columns, outputs)[:, : shape[1], : shape[2]]


def _each(function: Callable[[Array, Array], Array], left: Grid, right: Grid) -> Grid:
    return [[function(*pair) for pair in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]


def _pad(x: Array) -> Array:
    """A frame of zeros, so that the pixels inside of it are even in number both ways."""
    return jnp.pad(x, ((0, 0), *((1, 1 + length % 2) for length in x.shape[1:3]), (0, 0)))


def _pixels(padded: Array, places: Sequence[int]) -> Grid:
    """The pixels at `places` (rows and columns) of all tiles of 4 × 4, which begin at every other pixel."""
    rows, columns = (length // 2 - 1 for length in padded.shape[1:3])
    return [[padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for j in places] for i in places]


def _transform(matrix: np.ndarray, grid: Grid) -> Grid:
    """`matrix · grid · matrixᵀ`, where what stands in the grid are arrays."""
    columns = [[_combine(row, column) for row in matrix] for column in zip(*grid, strict=True)]
    return [[_combine(row, line) for row in matrix] for line in zip(*columns, strict=True)]


def _combine(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    terms = [a if w == 1 else -a if w == -1 else w * a for w, a in zip(weights, arrays, strict=True) if w]
    return functools.reduce(jnp.add, terms)


def _apply(x: Array, kernel: Array) -> Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _apply_transposed(x: Array, kernel: Array) -> Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (1,)), ((), ())))


def _outer(x: Array, y: Array) -> Array:
    """The sum over all axes but the last of the products of x's last with y's: [inputs, outputs]."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))


def max_pool(x: Array) -> Array:
    """The largest of each 3 × 3 window, in steps of 2, padded by 1; equal ones share the gradient.

    By shifted pictures, since the gradient of XLA's own windows is several times slower.
    """
    height, width = (-(-length // 2) for length in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    shifted = [x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, shifted)


class Convolution(nnx.Module):
    """A convolution without bias; kernel [size, size, inputs, outputs], Kaiming normal by its outputs.

    So He et al. 2015 (arXiv:1502.01852) initialise, and torchvision and transformers their ResNets.
    """

    def __init__(self, size: int, inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.stride = stride
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))

    def __call__(self, x: Array) -> Array:
        return convolution(x, self.kernel[...].astype(x.dtype), self.stride)


class BatchNorm(nnx.Module):
    """Ioffe & Szegedy 2015, arXiv:1502.03167; the statistics are those of all axes but the last, in float32.

    Under `jit` with the batch split over devices they are the whole batch's: XLA adds up what the devices have.

    Set `frozen` before the call for a layer whose parameters are frozen: in training, too, it then normalises by the
    running statistics and leaves them as they are.
    """

    frozen = False

    def __init__(self, channels: int, *, epsilon: float = 1e-5, momentum: float = 0.1):
        self.epsilon = epsilon
        self.momentum = momentum  # the share of the new batch, as PyTorch has it
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Array, train: bool) -> Array:
        if train and not self.frozen:
            y, mean, variance = batch_normalize(x, self.scale[...], self.bias[...], self.epsilon)
            rows = x.size // x.shape[-1]
            unbiased = variance * (rows / max(rows - 1, 1))
            self.mean[...] += self.momentum * (mean - self.mean[...])
            self.variance[...] += self.momentum * (unbiased - self.variance[...])
            return y
        normal = (x.astype(jnp.float32) - self.mean[...]) * jax.lax.rsqrt(self.variance[...] + self.epsilon)
        return add_bias(scale_by(normal, self.scale[...]), self.bias[...]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """`x` normalised by its own statistics, scaled and shifted; and these, mean and variance [channels], as constants.

    The derivative is by hand for the sums, by far the most of it on CPUs where XLA is slow at them (see `_sum`).
    """
    return _batch_normalize_forward(x, scale, bias, epsilon)[0]


def _batch_normalize_forward(x: Array, scale: Array, bias: Array, epsilon: float):
    wide, rows = x.astype(jnp.float32), x.size // x.shape[-1]
    mean = _sum(wide) / rows
    variance = _sum(jnp.square(wide - mean)) / rows
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, inverse)


def _batch_normalize_backward(_: float, kept: tuple[Array, ...], gradients: tuple[Array, Array, Array]):
    x, scale, mean, inverse = kept
    gradient, rows = gradients[0].astype(jnp.float32), x.size // x.shape[-1]
    normal = (x.astype(jnp.float32) - mean) * inverse
    for_bias, for_scale = _sum(gradient), _sum(gradient * normal)
    for_x = (gradient - for_bias / rows - normal * (for_scale / rows)) * (scale * inverse)
    return for_x.astype(x.dtype), for_scale, for_bias


batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)


def _sum(x: Array) -> Array:
    """The sum over all axes but the last; on CPUs as a matrix product, where it takes a tenth of XLA's own loop."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(rows.shape[0], x.dtype) @ rows if _on_cpu() else rows.sum(0)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """The larger of `x` and 0.

    As a choice, since XLA thinks nothing of computing a maximum twice and with it all that comes before it, back to
    the last convolution: layers of residual sums, for each of their readers.
    """
    return jnp.where(x <= 0, 0, x)  # NaN stays


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, gradient: (jnp.where(y <= 0, 0, gradient),))
