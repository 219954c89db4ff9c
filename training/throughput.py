"""How fast a run is: a meter over intervals, and the device's peak to compare with (MFU)."""

import re
import time
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from training import rules

# Dense bfloat16 peak of one device in FLOP/s, by the start of its kind, from the makers' data sheets.
PEAKS = {
    "TPU v2": 22.5e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA L4": 121e12, "Tesla T4": 65e12,
}  # fmt: skip


def training_flops(forward: float, params: Any, trained: Collection[str]) -> float:
    """The operations that a training step needs where a forward pass has `forward`: three times as many, less the
    gradients through the layers below the lowest that is trained, and those of kernels that are frozen.

    Args:
        params: the tree of all parameters; shapes will do.
        trained: the paths of those that are trained.
    """
    kernels = {
        p: leaf.size for p, leaf in zip(rules.paths(params), jax.tree.leaves(params), strict=True) if leaf.ndim > 1
    }
    numbered = {path: re.search(r"layers/(\d+)/", path) for path in kernels}
    layers = {path: int(match[1]) for path, match in numbered.items() if match and not path.startswith("lora/")}
    of_kernels = sum(kernels[path] for path in layers if path in trained) / max(
        1, sum(kernels[path] for path in layers)
    )
    lowest, count = _lowest(trained), 1 + max(layers.values(), default=0)
    return forward * (1 + (1 - lowest / count if lowest < count else 0) + of_kernels)


def _lowest(trained: Collection[str]) -> float:
    """The number of the lowest layer with a parameter that is trained; 0 for embeddings, infinity for heads alone."""
    layers = [int(match[1]) for path in trained if (match := re.search(r"layers/(\d+)/", path))]
    return 0 if any(path.startswith("embeddings/") for path in trained) else min(layers, default=float("inf"))


def peak_flops(dtype: str) -> float:
    """FLOP/s of all devices together: the data sheet's where it is known, else the best matrix product measured now."""
    kind = jax.devices()[0].device_kind
    known = max((name for name in PEAKS if kind.startswith(name)), key=len, default=None)
    each = PEAKS[known] if known else measured_peak(dtype)
    # Simulated devices of one CPU share its cores: what was measured is the peak of all of them.
    return each if jax.default_backend() == "cpu" else each * jax.device_count()


def measured_peak(dtype: str, size: int = 1536, repeats: int = 5) -> float:
    """The best rate, in FLOP/s, of a square matrix product on the first device; takes about half a second on a CPU."""
    x = jnp.ones((size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Meter:
    """Seconds of training alone: stopped while the run evaluates, saves or starts."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def lap(self) -> float:
        """The seconds since the last lap; the meter goes on if it was going."""
        going = self._since is not None
        self.stop()
        seconds, self._seconds = self._seconds, 0.0
        if going:
            self.start()
        return seconds
