"""Recurrent networks for comparison: the LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)
and the GRU (Cho et al. 2014, arXiv:1406.1078).

The cells' equations and parameters are those of PyTorch's nn.LSTM and nn.GRU, in both directions and any number of
layers: `input` is its `weight_ih` and `bias_ih`, `recurrent` its `weight_hh` and `bias_hh`, transposed, with the gates
in its order. Rows may be packed: the state begins anew with each text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers import Array, Linear
from models.mlp import BaselineConfig, TextClassifier, max_of_texts, mean_of_texts, of_texts

POOLS = ("last", "mean", "max")

State = tuple[Array, ...]  # float32 [batch, hidden] each; the first is the output


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(BaselineConfig):
    num_layers: int = 1
    hidden_size: int = 128  # of each direction: with both, a layer's output is twice as wide
    embedding_size: int = 0  # 0: hidden_size
    bidirectional: bool = True
    pool: str = "last"  # a text is its last state (of the backward direction: its first), or the mean or max of all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_size == 0:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        self._check("embedding_size", self.embedding_size >= 1, "Give a number above 0, or 0 for hidden_size.")
        self._check("pool", self.pool in POOLS, f"Choose {', '.join(POOLS)}.")

    @property
    def output_size(self) -> int:
        """The width of a layer's output."""
        return self.hidden_size * (2 if self.bidirectional else 1)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step: the state, and what input and state give to the gates, [batch, gates · hidden], to the next state."""

    gates: int
    states: int
    step: Callable[[State, Array, Array], State]


def _lstm(state: State, of_input: Array, of_state: Array) -> State:
    total = of_input.astype(jnp.float32) + of_state.astype(jnp.float32)
    write, forget, candidate, output = jnp.split(total, 4, axis=-1)
    memory = jax.nn.sigmoid(forget) * state[1] + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(output) * jnp.tanh(memory), memory


def _gru(state: State, of_input: Array, of_state: Array) -> State:
    of_input, of_state = of_input.astype(jnp.float32), of_state.astype(jnp.float32)
    reset, keep, candidate = jnp.split(of_input, 3, axis=-1)
    reset_by, keep_by, candidate_by = jnp.split(of_state, 3, axis=-1)
    keep = jax.nn.sigmoid(keep + keep_by)
    # PyTorch's order: the reset gate works on the product, not on the state before it.
    candidate = jnp.tanh(candidate + jax.nn.sigmoid(reset + reset_by) * candidate_by)
    return ((1 - keep) * candidate + keep * state[0],)


LSTM, GRU = Cell(4, 2, _lstm), Cell(3, 1, _gru)


@jax.custom_vjp
def project(x: Array, kernel: Array, bias: Array) -> Array:
    """`x @ kernel + bias` of x [length, batch, inputs].

    As `layers.dense`, but without making rows of both axes: it would gather a batch that lies on several devices.
    """
    return x @ kernel + bias


def _project_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = kept
    over_both = (((0, 1), (0, 1)), ((), ()))
    for_x = jax.lax.dot_general(gradient, kernel, (((2,), (1,)), ((), ())))
    for_bias = jax.lax.dot_general(jnp.ones(x.shape[:2], x.dtype), gradient, over_both)
    return for_x, jax.lax.dot_general(x, gradient, over_both), for_bias


project.defvjp(lambda x, kernel, bias: (project(x, kernel, bias), (x, kernel)), _project_backward)


# The backward pass of the loop is written by hand: the kernel's gradient is one product behind the loop in place of a
# sum in each step, and the kernel is transposed once. A training step of the LSTM on two cores, 128 tokens a row, takes
# 14 ms in place of 56 with 8 rows, and 61 in place of 95 with 32.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: Cell, kernel: Array, bias: Array, inputs: Array, begins: Array, present: Array) -> Array:
    """The cell over time: the outputs [length, batch, hidden].

    Args:
        kernel: [hidden, gates · hidden]; `bias` [gates · hidden].
        inputs: the inputs' parts, [length, batch, gates · hidden].
        begins: Booleans [length, batch, 1]; there the state before is zeros.
        present: Booleans [length, batch, 1]; where it is false the state stays as it is.
    """
    return _recur_forward(cell, kernel, bias, inputs, begins, present)[0]


def _loop(cell: Cell, kernel: Array, bias: Array, inputs: Array, begins: Array, present: Array) -> tuple[State, Array]:
    """The states behind each step, [length, batch, hidden] each, and their parts [length, batch, gates · hidden]."""

    def step(state: State, now: tuple[Array, Array, Array]) -> tuple[State, tuple[State, Array]]:
        of_input, begin, here = now
        state = tuple(jnp.where(begin, 0, part) for part in state)
        of_state = state[0].astype(kernel.dtype) @ kernel + bias
        after = cell.step(state, of_input, of_state)
        state = tuple(jnp.where(here, new, old) for new, old in zip(after, state, strict=True))
        return state, (state, of_state)

    nothing = jnp.zeros((inputs.shape[1], len(kernel)), jnp.float32)
    return jax.lax.scan(step, (nothing,) * cell.states, (inputs, begins, present))[1]


def _recur_forward(cell: Cell, kernel: Array, bias: Array, *others: Array) -> tuple[Array, tuple]:
    states, of_states = _loop(cell, kernel, bias, *others)
    return states[0].astype(kernel.dtype), (kernel, *others, states, of_states)


def _recur_backward(cell: Cell, kept: tuple, gradient: Array) -> tuple[Array, Array, Array, None, None]:
    kernel, inputs, begins, present, states, of_states = kept
    before = tuple(jnp.where(begins, 0, jnp.concatenate([jnp.zeros_like(part[:1]), part[:-1]])) for part in states)
    # Behind a barrier, as XLA would move the transposition back into the loop, where it costs more than the rest.
    transposed = jax.lax.optimization_barrier(kernel.T)

    def step(for_state: State, now: tuple) -> tuple[State, tuple[Array, Array]]:
        for_output, before, of_input, of_state, begin, here = now
        for_state = (for_state[0] + for_output, *for_state[1:])
        _, pull = jax.vjp(cell.step, before, of_input, of_state)
        for_before, for_input, for_part = pull(tuple(jnp.where(here, part, 0) for part in for_state))
        through = jax.lax.dot(for_part, transposed, preferred_element_type=jnp.float32)
        for_before = (for_before[0] + through, *for_before[1:])
        both = zip(for_before, for_state, strict=True)
        return tuple(jnp.where(begin, 0, jnp.where(here, new, old)) for new, old in both), (for_input, for_part)

    nothing = jnp.zeros(gradient.shape[1:], jnp.float32)
    walked = (gradient.astype(jnp.float32), before, inputs, of_states, begins, present)
    _, (for_inputs, for_parts) = jax.lax.scan(step, (nothing,) * cell.states, walked, reverse=True)
    _, for_kernel, for_bias = _project_backward((before[0].astype(kernel.dtype), kernel), for_parts)
    return for_kernel, for_bias, for_inputs, None, None


recur.defvjp(_recur_forward, _recur_backward)


class Direction(nnx.Module):
    """One layer that reads in one direction."""

    def __init__(self, cell: Cell, inputs: int, hidden: int, rngs: nnx.Rngs):
        self.cell = cell
        self.input = Linear(inputs, cell.gates * hidden, stddev=inputs**-0.5, rngs=rngs)
        self.recurrent = Linear(hidden, cell.gates * hidden, stddev=hidden**-0.5, rngs=rngs)
        # Orthogonal for each gate, so that gradients last over many steps (Saxe et al. 2013, arXiv:1312.6120).
        init = nnx.initializers.orthogonal()
        kernels = [init(rngs.params(), (hidden, hidden), jnp.float32) for _ in range(cell.gates)]
        self.recurrent.kernel = nnx.Param(jnp.concatenate(kernels, axis=1))
        if cell is LSTM:  # a forget bias of 1: at first it remembers (Jozefowicz et al. 2015)
            self.input.bias = nnx.Param(jnp.zeros(4 * hidden, jnp.float32).at[hidden : 2 * hidden].set(1))

    def __call__(self, x: Array, segment_ids: Array) -> Array:
        """[length, batch, inputs] and [length, batch] to [length, batch, hidden]."""
        # Time first: the loop then reads and writes whole blocks.
        inputs = project(x, *_weights(self.input, x.dtype))
        before = jnp.concatenate([jnp.zeros_like(segment_ids[:1]), segment_ids[:-1]])
        present = segment_ids > 0
        begins = present & (segment_ids != before)
        recurrent = _weights(self.recurrent, x.dtype)
        return recur(self.cell, *recurrent, inputs, begins[:, :, None], present[:, :, None])


def _weights(linear: Linear, dtype: jnp.dtype) -> tuple[Array, Array]:
    return linear.kernel[...].astype(dtype), linear.bias[...].astype(dtype)


class RecurrentLayer(nnx.Module):
    """One layer: [batch, length, inputs] to [batch, length, output_size], the forward outputs before the backward."""

    def __init__(self, cell: Cell, config: RecurrentConfig, inputs: int, rngs: nnx.Rngs):
        self.forward = Direction(cell, inputs, config.hidden_size, rngs)
        self.backward = Direction(cell, inputs, config.hidden_size, rngs) if config.bidirectional else None

    def __call__(self, x: Array, segment_ids: Array) -> Array:
        x, segments = x.swapaxes(0, 1), segment_ids.T
        outputs = [self.forward(x, segments)]
        if self.backward is not None:  # reading the row from its end, each text begins with its last token
            outputs.append(self.backward(x[::-1], segments[::-1])[::-1])
        return jnp.concatenate(outputs, axis=-1).swapaxes(0, 1)


class RecurrentForSequenceClassification(TextClassifier):
    """What both networks do; `dtype` is that of the products, states are float32."""

    cell: ClassVar[Cell]
    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        sizes = [config.embedding_size] + [config.output_size] * (config.num_layers - 1)
        layers = [RecurrentLayer(self.cell, config, size, rngs) for size in sizes]
        super().__init__(config, config.embedding_size, layers, config.output_size, rngs, dtype)

    def _pooled(self, hidden: Array, segment_ids: Array, first_positions: Array) -> Array:
        texts = first_positions.shape[1]
        if self.config.pool != "last":
            return {"mean": mean_of_texts, "max": max_of_texts}[self.config.pool](hidden, segment_ids, texts)
        lengths = of_texts(segment_ids, texts).sum(-1)
        last_positions = first_positions + lengths - 1  # -1, the end of the row, where there is no such text
        half = self.config.hidden_size
        ends = [jnp.take_along_axis(hidden[:, :, :half], last_positions[:, :, None], axis=1)]
        if self.config.bidirectional:
            ends.append(jnp.take_along_axis(hidden[:, :, half:], first_positions[:, :, None], axis=1))
        return jnp.concatenate(ends, axis=-1)

    @classmethod
    def flops(cls, config: RecurrentConfig, length: int, texts: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row."""
        inputs = config.embedding_size + (config.num_layers - 1) * config.output_size  # of all layers
        each = (inputs + config.num_layers * config.hidden_size) * cls.cell.gates * config.output_size
        head = config.output_size * (config.num_labels + (length if config.pool == "mean" else 0))
        return 2 * (length * each + texts * head)


class LstmForSequenceClassification(RecurrentForSequenceClassification):
    """A long short-term memory that labels texts."""

    cell = LSTM


class GruForSequenceClassification(RecurrentForSequenceClassification):
    """A gated recurrent unit that labels texts."""

    cell = GRU
