"""What differs between families of foreign models, as tables: their names for our parameters and our options."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizer import Tokenizer
from errors import UserError
from models import MODELS, parameters

# hidden_act -> our activation. "gelu" is the exact one in both; the three of tanh differ in their last digits alone.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
OLD_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # TensorFlow's


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's, and how a model of ours lies in its folders."""

    model_type: str
    name: str  # of our family in models.MODELS
    fixed: Mapping[str, Any]  # the fields of our config that the model_type decides
    fields: Mapping[str, tuple[str, Any]]  # our field -> their option, and its value where config.json is silent
    only: Mapping[str, Any]  # their options of which we compute this value alone; silence means it too
    equal: Mapping[str, str]  # their options that must have the value of one of our fields
    backbone: str  # stands before the names of the backbone's tensors; where there is no head, it is left out
    modules: Mapping[str, str]  # our module -> theirs; N is the number of a layer
    ties: Mapping[str, str]  # their second names of a tensor -> the first
    classes: Mapping[str, str]  # our head -> the transformers class that has it
    pooled: frozenset[str]  # our heads whose class holds the pooler
    tokenizer: str  # the tokenizer's class where nothing names one
    interleaved: bool = False  # rotary positions turn neighbours, where ours turn the halves of a head
    position_table: str = ""  # a tensor with the sines and cosines of all positions
    stack: str = "encoder"  # our stack whose depth num_layers is
    bare: tuple[str, ...] = ("embeddings.", "encoder.", "pooler.")  # how the backbone's names begin without `backbone`
    always: tuple[str, ...] = ()  # our heads that every folder has
    transposed: bool = True  # a kernel lies there as [outputs, inputs]
    joined: tuple[str, ...] = ()  # our modules, by their last word, that are one of theirs, one behind the other
    rows: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # parameters that lie there as a matrix of one row
    computed: tuple[str, ...] = ()  # tensors that follow from config.json: passed over
    exported: bool = True  # a model of ours can be written as one of these
    # (folder, name of the flag) -> tokenizers of source and target, where a folder of this type has two
    open_tokenizers: Callable[[Path, str], tuple[Tokenizer, Tokenizer]] | None = None

    def read_config(self, about: Mapping[str, Any], path: Path, field: str) -> dict[str, Any]:
        """The fields of our config that config.json decides.

        Raises:
            UserError: an option has a value that we do not compute, or that is none.
        """

        def refuse(option: str, value: object, mend: str) -> UserError:
            return UserError(field, f"{path}: {option} is {value!r}", mend)

        for option, value in self.only.items():
            if about.get(option, value) not in (value, None):
                raise refuse(option, about[option], f"Choose a model where it is {value!r}: no other is computed.")
        model = dict(self.fixed)
        for name, (option, default) in self.fields.items():
            model[name] = about.get(option, default)
            if (
                model[name] is None and default == 0 and default is not False
            ):  # null stands for what follows from other options
                model[name] = default
            if model[name] != default and not _fits(model[name], default):
                kind = {str: "a word", float: "a number", bool: "true or false"}.get(
                    type(default), "a whole number above 0"
                )
                raise refuse(option, model[name], f"Mend it: it must be {kind}.")
        for option, name in self.equal.items():
            if about.get(option) not in (model[name], None):
                mend = f"Choose a model where it is its {self.fields[name][0]}, {model[name]}: no other is computed."
                raise refuse(option, about[option], mend)
        if model["activation"] not in ACTIVATIONS:
            raise refuse(
                self.fields["activation"][0],
                model["activation"],
                f"Choose a model with one of {', '.join(ACTIVATIONS)}.",
            )
        model["activation"] = ACTIVATIONS[model["activation"]]
        try:
            MODELS[self.name].config(**model)
        except UserError as error:
            name = error.field.removeprefix("config.model.")
            value = f"{path}: {self.fields.get(name, (name,))[0]} is {error.value}"
            raise UserError(field, value, "Choose a model whose sizes go together.") from error
        return model

    def write_config(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The options of config.json by the fields of our config."""
        about = {option: model[name] for name, (option, _) in self.fields.items()}
        about[self.fields["activation"][0]] = next(
            theirs for theirs, ours in ACTIVATIONS.items() if ours == model["activation"]
        )
        return {**about, **self.only, **{option: model[name] for option, name in self.equal.items()}}

    def full_names(self, names: Iterable[str], folder: Path, field: str) -> dict[str, str]:
        """The name of each tensor as transformers writes it today under a head -> the name that it has in the folder.

        Raises:
            UserError: two names mean the same tensor.
        """
        found: dict[str, str] = {}
        for name in names:
            full = name
            for old, new in OLD_LEAVES.items():
                full = full.removesuffix(old) + new if full.endswith(old) else full
            if full.startswith(self.bare):
                full = self.backbone + full
            if full in found:
                raise UserError(field, f"{folder} has {found[full]} and {name}, which are one", "Save the model anew.")
            found[full] = name
        return found

    def full_name(self, path: str) -> str:
        """Their full name of a parameter of ours."""
        if path in self.rows:
            return self.rows[path]
        module, _, leaf = path.rpartition("/")
        layer = re.search(r"/layers/(\d+)/", module)
        number = layer[1] if layer else ""
        name = self.modules[module.replace(f"/layers/{number}/", "/layers/N/")]
        return f"{name.replace('.N.', f'.{number}.')}.{LEAVES[leaf]}"

    def shapes(self, model: Mapping[str, Any], head: str, labels: int) -> dict[str, tuple[int, ...]]:
        """The parameters of our model with this head, path -> shape."""
        family = MODELS[self.name]
        config = family.config(**{**model, **({"num_labels": labels} if labels else {})})
        _, params, _ = parameters.structure(lambda rngs: family.heads[head](config, rngs))
        return {path: leaf.shape for path, leaf in parameters.flatten(params).items()}

    def their_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor that a parameter of ours with this shape comes from."""
        if path in self.rows:
            return (1, *shape)
        if self._part(path) is not None:
            shape = (*shape[:-1], shape[-1] * len(self.joined))
        return shape[::-1] if path.endswith("/kernel") and self.transposed else shape

    def to_ours(self, path: str, array: np.ndarray, num_heads: int) -> np.ndarray:
        """Their array as the parameter of ours."""
        if path in self.rows:
            return np.ascontiguousarray(array[0])
        ours = array.T if path.endswith("/kernel") and self.transposed else array
        part = self._part(path)
        if part is not None:
            ours = np.split(ours, len(self.joined), axis=-1)[part]
        if self._turns(path):
            pairs = ours.reshape(*ours.shape[:-1], num_heads, -1, 2)
            ours = pairs.swapaxes(-1, -2).reshape(ours.shape)
        return np.ascontiguousarray(ours)

    def to_theirs(self, path: str, array: np.ndarray, num_heads: int) -> np.ndarray:
        """What `to_ours` turned into the array."""
        if path in self.rows:
            return np.ascontiguousarray(array[None])
        if self._turns(path):
            halves = array.reshape(*array.shape[:-1], num_heads, 2, -1)
            array = halves.swapaxes(-1, -2).reshape(array.shape)
        return np.ascontiguousarray(array.T if path.endswith("/kernel") and self.transposed else array)

    def tensors(self, params: Mapping[str, np.ndarray], num_heads: int) -> dict[str, np.ndarray]:
        """Their tensors, by full name, of parameters of ours."""
        parts: dict[str, dict[int, np.ndarray]] = {}
        for path, array in params.items():
            parts.setdefault(self.full_name(path), {})[self._part(path) or 0] = self.to_theirs(path, array, num_heads)
        return {
            name: np.concatenate([of_name[i] for i in sorted(of_name)], -1) if len(of_name) > 1 else of_name[0]
            for name, of_name in parts.items()
        }

    def _part(self, path: str) -> int | None:
        """Which part of their tensor a parameter of ours is; None if it is the whole."""
        module = path.rpartition("/")[0].rpartition("/")[2]
        return self.joined.index(module) if module in self.joined else None

    def _turns(self, path: str) -> bool:
        """Whether rotary positions turn the outputs of this parameter, so that their order matters."""
        return self.interleaved and bool(re.search("/attention/(query|key)/", path))


def _fits(value: Any, default: Any) -> bool:
    """Whether an option has a value of its default's kind."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is int and value > 0
