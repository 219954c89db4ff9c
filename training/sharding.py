"""Devices: the mesh, and the way of batches and state onto it. One path from one CPU to a pod."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from errors import UserError


def make_mesh(data: int, batch_size: int) -> Mesh:
    """A mesh over all devices of all processes; `data` is how many share a batch, -1 for all there are.

    Raises:
        UserError: the mesh does not fit the devices, or `batch_size` does not divide over them.
    """
    count = jax.device_count()
    if data not in (-1, count):
        raise UserError("config.mesh.data", f"{data} with {count} devices", f"Give {count}, or -1 for all devices.")
    if batch_size % count:
        raise UserError(
            "config.train.batch_size",
            f"{batch_size} rows do not divide over {count} devices",
            f"Give a multiple of {count}, such as {-(-batch_size // count) * count}.",
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split by rows over the mesh, from the rows that this process holds."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """The same tree with every leaf copied to all devices."""
    return jax.device_put(tree, replicated(mesh))
