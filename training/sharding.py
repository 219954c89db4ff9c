"""Devices: the mesh, where each parameter lies on it, and the way of batches and state there.

One path from one CPU to a pod: `jax.jit` with shardings; XLA adds the communication.

The mesh has three axes. Batches are split by rows over `data` and `fsdp`. Parameters, and with them moments and
averages, are split over `fsdp` and gathered where they are used (Rajbhandari et al. 2020, arXiv:1910.02054), and over
`tensor` by the rules below (Shoeybi et al. 2019, arXiv:1909.08053).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from errors import UserError
from training import rules

AXES = DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = PartitionSpec((DATA, FSDP))
ANEW = ("sharding_constraint", "convert_element_type")  # what makes gathered parameters, which are not kept

# Which dimension of a parameter the axis `tensor` splits; first match over parameter paths. Heads and inner width are
# split, so that a block communicates twice: behind its attention and behind its feed-forward.
TENSOR_RULES: rules.Rules = (
    (".*attention/(query|key|value)/(kernel|bias)", -1),
    (".*attention/output/kernel", 0),
    (".*mlp/up/(kernel|bias)", -1),
    (".*mlp/down/kernel", 0),
    (".*", None),
)


def make_mesh(batch_size: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices of all processes.

    Args:
        batch_size: rows of a batch, or of a micro-batch.
        data, fsdp, tensor: how many devices each axis has; -1, for one of them: as many as the others leave.

    Raises:
        UserError: the mesh does not fit the devices, or the batch does not divide over them.
    """
    count, local = jax.device_count(), jax.local_device_count()
    sizes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    field = "config.mesh.data" if (fsdp, tensor) == (1, 1) else "config.mesh"
    said = str(data) if field != "config.mesh" else " × ".join(f"{name} {size}" for name, size in sizes.items())
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError("config.mesh", said, "Let at most one axis be -1.")
    given = math.prod(size for size in sizes.values() if size != -1)
    if rest and count % given == 0:
        sizes[rest[0]] = count // given
    elif rest or given != count:
        raise UserError(field, f"{said} with {count} devices", f"Give axes whose product is {count}, or one as -1.")
    if local % sizes[TENSOR]:
        value = f"{sizes[TENSOR]} with {local} devices in each process"
        raise UserError("config.mesh.tensor", value, f"Give a number that divides {local}.")
    shards = sizes[DATA] * sizes[FSDP]
    if batch_size % shards:
        raise UserError(
            "config.train.batch_size",
            f"{batch_size} rows do not divide over {shards} devices",
            f"Give a multiple of {shards}, such as {-(-batch_size // shards) * shards}.",
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parameters lie.

    Attributes:
        shapes: of each parameter, by path.
        specs: how each is split over the mesh.
        whole: for each path, the axes that divide none of its dimensions that they might split: it is whole along them.
    """

    mesh: Mesh
    shapes: dict[str, tuple[int, ...]]
    specs: dict[str, PartitionSpec]
    whole: dict[str, tuple[str, ...]]

    def of(self, tree: Any) -> Any:
        """The sharding of every leaf of a state or a part of it: of moments and averages that of their parameter."""
        return rules.map_paths(self._of_leaf, tree)

    def template(self, shapes: Any) -> Any:
        """Shapes of a state with the sharding of each leaf."""
        return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, self.of(shapes))

    def _of_leaf(self, path: str, leaf: Any) -> NamedSharding:
        parts = path.split("/")
        for start in range(len(parts)):
            own = "/".join(parts[start:])
            if self.shapes.get(own) == tuple(leaf.shape):
                return NamedSharding(self.mesh, self.specs[own])
        return replicated(self.mesh)

    def gathering(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward(params, …)` of parameters as they lie: gathered along `fsdp`, and once more on the way back."""
        if self.mesh.shape[FSDP] == 1:
            return forward

        def gathered(params: Any, *arguments: Any) -> Any:
            return forward(rules.map_paths(self._gather, params), *arguments)

        # Else what was gathered, or a narrower copy of it, would be kept for the gradient, and every device hold the
        # whole model after all.
        return jax.checkpoint(gathered, policy=lambda made_by, *_, **__: made_by.name not in ANEW)

    def _gather(self, path: str, leaf: jax.Array) -> jax.Array:
        split = self.specs[path]
        spec = PartitionSpec(*(None if axis == FSDP else axis for axis in split))
        if spec == split:
            return leaf
        here, there = NamedSharding(self.mesh, split), NamedSharding(self.mesh, spec)

        # Written by hand: else the gradient would be asked for whole.
        @jax.custom_vjp
        def gather(x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, there)

        def scatter(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            return (jax.lax.with_sharding_constraint(gradient, here),)

        # Not `gather` itself: what decides what is kept shall see the constraint.
        gather.defvjp(lambda x: (jax.lax.with_sharding_constraint(x, there), None), scatter)
        return gather(leaf)


def lay_out(mesh: Mesh, params: Any) -> Layout:
    """Where the parameters of a tree, of which shapes will do, lie on the mesh.

    Along `fsdp` the largest dimension is split that `tensor` does not split and that the axis divides.

    Raises:
        UserError: an axis splits no parameter.
    """
    shapes = dict(zip(rules.paths(params), (tuple(leaf.shape) for leaf in jax.tree.leaves(params)), strict=True))
    specs, whole = {}, {}
    for path, shape in shapes.items():
        dimension = rules.first_match(TENSOR_RULES, path)
        axes: list[str | None] = [None] * len(shape)
        left_out = []
        if mesh.shape[TENSOR] > 1 and dimension is not None:
            if shape[dimension] % mesh.shape[TENSOR]:
                left_out.append(TENSOR)
            else:
                axes[dimension] = TENSOR
        if mesh.shape[FSDP] > 1:
            dividing = [i for i, axis in enumerate(axes) if axis is None and shape[i] % mesh.shape[FSDP] == 0]
            if dividing:
                axes[max(dividing, key=lambda i: shape[i])] = FSDP
            else:
                left_out.append(FSDP)
        specs[path], whole[path] = PartitionSpec(*axes), tuple(left_out)
    for axis in (FSDP, TENSOR):
        if mesh.shape[axis] > 1 and not any(axis in spec for spec in specs.values()):
            value = f"{mesh.shape[axis]} splits no parameter of this model"
            raise UserError(f"config.mesh.{axis}", value, "Give 1, or a number that divides the model's widths.")
    return Layout(mesh, shapes, specs, whole)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split by rows over the mesh, from the rows that this process holds."""
    rows = NamedSharding(mesh, ROWS)
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """The same tree with every leaf copied to all devices."""
    return jax.device_put(tree, replicated(mesh))


def meet(what: str) -> None:
    """Waits until every process has come here; nothing of one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gather_here(tree: Any) -> Any:
    """The tree in every process's own memory; called by all of them. Of one process the tree itself."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)
