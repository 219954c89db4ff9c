"""What differs between families of foreign models, as tables: their names for our parameters and our options."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.labels import LARGEST
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
LEAVES = {
    "embedding": "weight",
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
OLD_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # TensorFlow's
# How many batches a BatchNorm of PyTorch's has seen, which nothing is computed from: passed over, and written as 0.
COUNTER = "num_batches_tracked"
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}  # of a kernel of ours, in the order in which they lie there: outputs, inputs, …
BACKBONE = ("embeddings/", "encoder/", "decoder/")


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
    modules: Mapping[str, str]  # our module -> theirs; N is a number: of a stage, of a layer …
    ties: Mapping[str, str]  # their second names of a tensor -> the first
    classes: Mapping[str, str]  # our head -> the transformers class that has it
    pooled: frozenset[str]  # our heads whose class holds the pooler
    tokenizer: str = ""  # the tokenizer's class where nothing names one; empty: the model reads pictures
    interleaved: bool = False  # rotary positions turn neighbours, where ours turn the halves of a head
    position_table: str = ""  # a tensor with the sines and cosines of all positions
    # A parameter that each layer has; the last N is the number of the layer, one before it that of the stage.
    stack: str = "encoder/layers/N/mlp/down/kernel"
    bare: tuple[str, ...] = ("embeddings.", "encoder.", "pooler.")  # how the backbone's names begin without `backbone`
    always: tuple[str, ...] = ()  # our heads that every folder has
    transposed: bool = True  # a kernel lies there as [outputs, inputs]
    joined: tuple[str, ...] = ()  # our modules, by their last word, that are one of theirs, one behind the other
    # Parameters that lie there with leading axes of 1 -> the name there, how many of these axes.
    rows: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    unrolled: tuple[str, ...] = ()  # our kernels [side · side · channels, outputs] of patches: convolutions there
    computed: tuple[str, ...] = ()  # tensors that follow from config.json: passed over
    # Mean and deviation of each channel where a folder does not say what pictures are normalised by; none: of texts.
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
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
            silent = type(model[name]) is type(default) and model[name] == default  # 12.0 and False are no 12 and 0
            if not silent and not _fits(model[name], default):
                raise refuse(option, model[name], f"Mend it: it must be {KINDS.get(type(default), KINDS[int])}.")
            if isinstance(model[name], list):
                model[name] = tuple(model[name])  # which hashes
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
            return self.rows[path][0]
        module, _, leaf = path.rpartition("/")
        words = module.split("/")
        numbers = iter([word for word in words if word.isdecimal()])
        name = self.modules["/".join("N" if word.isdecimal() else word for word in words)]
        return ".".join([next(numbers) if word == "N" else word for word in name.split(".")] + [LEAVES[leaf]])

    def deepest(self, model: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
        """How many layers each stage has by the fields of our config, and a parameter of its last one."""
        begin, _, end = self.stack.rpartition("N")
        for stage, depth in enumerate(model.get("depths") or (model["num_layers"],)):
            yield depth, f"{begin.replace('N', str(stage))}{depth - 1}{end}"

    def shapes(self, model: Mapping[str, Any], head: str, labels: int) -> dict[str, tuple[int, ...]]:
        """The parameters and statistics of our model with this head, or of its backbone if it has no such head."""
        family = MODELS[self.name]
        config = family.config(**{**model, **({"num_labels": labels} if labels else {})})
        build = family.heads.get(head, next(iter(family.heads.values())))
        _, *trees = parameters.structure(lambda rngs: build(config, rngs))
        shapes = {path: leaf.shape for tree in trees for path, leaf in parameters.flatten(tree).items()}
        return {path: shape for path, shape in shapes.items() if head in family.heads or path.startswith(BACKBONE)}

    def their_shape(self, path: str, shape: tuple[int, ...], model: Mapping[str, Any]) -> tuple[int, ...]:
        """Of the tensor that a parameter of ours with this shape comes from; `model` has the fields of our config."""
        if path in self.rows:
            return (1,) * self.rows[path][1] + shape
        if self._part(path) is not None:
            shape = (*shape[:-1], shape[-1] * len(self.joined))
        shape = self._rolled(path, shape, model)
        return tuple(shape[axis] for axis in AXES[len(shape)]) if self._turned(path) else shape

    def to_ours(self, path: str, array: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
        """Their array as the parameter of ours."""
        if path in self.rows:
            return np.ascontiguousarray(array.reshape(array.shape[self.rows[path][1] :]))
        ours = array.transpose(np.argsort(AXES[array.ndim])) if self._turned(path) else array
        if path in self.unrolled:
            ours = ours.reshape(-1, ours.shape[-1])
        part = self._part(path)
        if part is not None:
            ours = np.split(ours, len(self.joined), axis=-1)[part]
        if self._rotates(path):
            pairs = ours.reshape(*ours.shape[:-1], model["num_heads"], -1, 2)
            ours = pairs.swapaxes(-1, -2).reshape(ours.shape)
        return np.ascontiguousarray(ours)

    def to_theirs(self, path: str, array: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
        """What `to_ours` turned into the array."""
        if path in self.rows:
            return np.ascontiguousarray(array.reshape((1,) * self.rows[path][1] + array.shape))
        if self._rotates(path):
            halves = array.reshape(*array.shape[:-1], model["num_heads"], 2, -1)
            array = halves.swapaxes(-1, -2).reshape(array.shape)
        array = array.reshape(self._rolled(path, array.shape, model))
        return np.ascontiguousarray(array.transpose(AXES[array.ndim]) if self._turned(path) else array)

    def tensors(self, params: Mapping[str, np.ndarray], model: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Their tensors, by full name, of parameters and statistics of ours."""
        parts: dict[str, dict[int, np.ndarray]] = {}
        for path, array in params.items():
            parts.setdefault(self.full_name(path), {})[self._part(path) or 0] = self.to_theirs(path, array, model)
            if path.endswith("/mean"):
                parts[self.full_name(path).removesuffix(LEAVES["mean"]) + COUNTER] = {0: np.zeros((), np.int64)}
        return {
            name: np.concatenate([of_name[i] for i in sorted(of_name)], -1) if len(of_name) > 1 else of_name[0]
            for name, of_name in parts.items()
        }

    def _part(self, path: str) -> int | None:
        """Which part of their tensor a parameter of ours is; None if it is the whole."""
        module = path.rpartition("/")[0].rpartition("/")[2]
        return self.joined.index(module) if module in self.joined else None

    def _turned(self, path: str) -> bool:
        """Whether this parameter's axes lie there in another order."""
        return self.transposed and path.endswith("/kernel")

    def _rolled(self, path: str, shape: tuple[int, ...], model: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a kernel of ours as that of a convolution, where it is one there."""
        if path not in self.unrolled:
            return shape
        side = model["patch_size"]
        return side, side, shape[0] // side**2, shape[1]

    def _rotates(self, path: str) -> bool:
        """Whether rotary positions turn the outputs of this parameter, so that their order matters."""
        return self.interleaved and bool(re.search("/attention/(query|key)/", path))


KINDS = {
    str: "a word",
    float: "a number",
    bool: "true or false",
    tuple: "a list of whole numbers above 0",
    int: "a whole number above 0",
}


def _fits(value: Any, default: Any) -> bool:
    """Whether an option has a value of its default's kind."""
    if isinstance(default, tuple):
        return isinstance(value, list) and bool(value) and all(_fits(item, 1) for item in value)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return type(value) is int and value > 0
