"""The weights of one folder: found under all their names, checked against config.json, then read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from interop.family import COUNTER, Family
from interop.tensors import FLOATS, Stored, find_tensors
from models.layers import sinusoidal_positions


class Weights:
    """The tensors of a folder, found by the names that transformers writes today under a head.

    Attributes:
        names: that full name -> the name in the folder.
    """

    def __init__(self, folder: Path, family: Family, field: str):
        self.folder, self.family, self.field = folder, family, field
        self._tensors = find_tensors(folder, field)
        self.names = family.full_names(self._tensors, folder, field)
        for alias, first in family.ties.items():
            if alias in self.names and first not in self.names:
                self.names[first] = self.names.pop(alias)

    def stored(self, full: str) -> Stored:
        """What the header says of a tensor by its full name."""
        return self._tensors[self.names[full]]

    def check_depth(self, model: Mapping[str, Any], config_path: Path) -> None:
        """Before the shapes of all layers are made, however many config.json dreams of."""
        for layers, path in self.family.deepest(model):
            last = self.family.full_name(path)
            if last not in self.names:
                value = f"{self.folder} has no {last}, the last of {layers} layers by config.json"
                raise UserError(self.field, value, f"Use the {config_path.name} that was saved with the weights.")

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]], model: Mapping[str, Any]) -> None:
        """Every parameter, our path -> shape, must be there as floats of its shape."""
        missing = [full for path in shapes if (full := self.family.full_name(path)) not in self.names]
        if missing:
            value = f"{self.folder} has no {missing[0]}" + (f", nor {len(missing) - 1} more" if missing[1:] else "")
            raise UserError(self.field, value, "Save the whole model, with the head that its architectures name.")
        for path, shape in shapes.items():
            stored = self.stored(self.family.full_name(path))
            name = self.names[self.family.full_name(path)]
            expected = self.family.their_shape(path, shape, model)
            if stored.shape != expected:
                value = f"{stored.path}: {name} is {list(stored.shape)}, by config.json {list(expected)}"
                raise UserError(self.field, value, "Use the config.json that was saved with the weights.")
            if stored.dtype not in FLOATS:
                mend = f"Save the model anew in one of {', '.join(FLOATS)}."
                raise UserError(self.field, f"{stored.path}: {name} is of type {stored.dtype}", mend)

    def check_copies(self, model: Mapping[str, Any]) -> None:
        """What the folder holds although it follows from something else must follow from it."""
        for alias, first in self.family.ties.items():
            if alias not in self.names:
                continue
            copy, original = self.stored(alias), self.stored(first)
            known = {copy.dtype, original.dtype} <= set(FLOATS)
            if not known or copy.shape != original.shape or not np.array_equal(copy.read(), original.read()):
                value = f"{self.folder}: {self.names[alias]} is not the same as {self.names[first]}"
                raise UserError(self.field, value, "Choose a model whose decoder is tied: no other is computed.")
        if self.family.position_table in self.names:
            table = self.stored(self.family.position_table)
            expected = (model["max_positions"], model["hidden_size"] // model["num_heads"])
            known = table.dtype in FLOATS and table.shape == expected
            if not known or not np.allclose(table.read(), sinusoidal_positions(*expected), atol=1e-2):
                value = f"{table.path}: {self.names[self.family.position_table]} holds other positions"
                raise UserError(self.field, value, "Choose a model with sinusoidal positions: no other is computed.")

    def read(self, path: str, model: Mapping[str, Any]) -> np.ndarray:
        """The parameter of ours, float32, of a model with these fields."""
        full = self.family.full_name(path)
        array = self.stored(full).read()
        if not np.isfinite(array).all():
            value = f"{self.stored(full).path}: {self.names[full]} has numbers that are not finite"
            raise UserError(self.field, value, "Choose weights of a run that did not diverge, or download them again.")
        return self.family.to_ours(path, array, model)

    def left_over(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The names in the folder that none of these parameters of ours comes from."""
        used = {
            *map(self.family.full_name, paths),
            *self.family.ties,
            *self.family.computed,
            self.family.position_table,
        }
        names = self.names.items()
        return tuple(sorted(name for full, name in names if full not in used and not full.endswith(COUNTER)))
