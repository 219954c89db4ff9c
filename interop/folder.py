"""Hugging Face folders in and out, without PyTorch or transformers: config.json, weights, tokenizer or preprocessor."""

import collections
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_json import write_for_transformers
from errors import UserError
from interop.bert import BERT
from interop.family import Family
from interop.gpt2 import GPT2
from interop.marian import MARIAN
from interop.pictures import FILE as PREPROCESSOR
from interop.pictures import Normalization, preprocessor, read_normalization
from interop.resnet import RESNET
from interop.roformer import ROFORMER
from interop.tensors import SINGLE, write_tensors
from interop.vit import VIT
from interop.weights import Weights
from models import MODELS
from models.layers import sinusoidal_positions

FAMILIES = {family.model_type: family for family in (BERT, ROFORMER, GPT2, MARIAN, VIT, RESNET)}
PROBLEMS = {  # problem_type -> our word
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
CLASSIFIES = {"classification": "ForSequenceClassification", "image_classification": "ForImageClassification"}
MOST_PADDING = 127  # rows of a word embedding beyond the pieces: as many as rounding up to 128 can give
PADDED = ("embeddings/word/embedding", "mlm_head/bias")  # what has a row a piece


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """What a folder holds, in our words.

    Attributes:
        folder: where it lies.
        name: the family in models.MODELS.
        model: the fields of that family's config that the folder decides.
        tokenizer: the one whose ids the weights know; `target_tokenizer` that of the target, where it is another.
        normalization: what pictures are normalised by, mean and deviation of each channel; empty for texts.
        labels: of a classification head, by id; empty if the folder names none, and for regression.
        problem: `multiclass`, `multilabel` or `regression`; empty without a classification head.
        heads: which heads the weights hold: `mlm`, `classification`, `image_classification`.
        params: float32 arrays by our path; BatchNorm's statistics are among them.
        key_map: our path -> the tensor's name in the folder.
        left_over: the names of the tensors that have no place in the family.
    """

    folder: Path
    name: str
    model: dict[str, Any]
    tokenizer: Tokenizer | None
    target_tokenizer: Tokenizer | None
    normalization: Normalization
    labels: tuple[str, ...]
    problem: str
    heads: tuple[str, ...]
    params: dict[str, np.ndarray]
    key_map: dict[str, str]
    left_over: tuple[str, ...]


def open_folder(folder: Path, field: str = "config.init_from") -> ForeignModel:
    """Reads a folder that transformers saved, or one that is laid out like it.

    Args:
        field: the name of the flag or config field, for messages.

    Raises:
        UserError: the folder lacks something, holds a model that we do not compute exactly, or is broken.
    """
    folder = Path(os.path.expanduser(folder))  # which, unlike Path.expanduser, leaves an unknown ~user as it is
    config_path = folder / "config.json"
    about = _read_json(config_path, field)
    family = _family(about, config_path, field)
    model = family.read_config(about, config_path, field)
    tokenizer, target_tokenizer, normalization = _open_reader(folder, about, family, model, field)
    weights = Weights(folder, family, field)

    head = next((head for head in CLASSIFIES if head in family.classes), "")
    classifier = family.full_name("classifier/kernel") if head else ""
    classifies = classifier in weights.names and _is_for_wholes(about, family, head, weights.names)
    mlm = any(name.startswith("cls.predictions.") for name in weights.names)
    heads = family.always + ("mlm",) * mlm + (head,) * classifies
    if family.pooled:
        pooled = family.full_name("pooler/kernel") in weights.names
        model["pooler"] = pooled and bool(family.pooled & {"features", *heads})
    labels = _read_labels(about, head, config_path, field) if classifies else ()
    outputs = len(labels) or (sum(weights.stored(classifier).shape[:1]) if classifies else 0)
    problem = _read_problem(about, head, outputs, config_path, field) if classifies else ""
    if head == "image_classification":  # transformers leaves these names out where there are two
        labels = labels or _numbered(outputs)

    weights.check_depth(model, config_path)
    shapes: dict[str, tuple[int, ...]] = {}
    for head in heads or ("features",):
        shapes |= family.shapes(model, head, outputs)
    weights.check_shapes(shapes, model)
    weights.check_copies(model)
    return ForeignModel(
        folder=folder,
        name=family.name,
        model=model,
        tokenizer=tokenizer,
        target_tokenizer=target_tokenizer,
        normalization=normalization,
        labels=() if problem == "regression" else labels,
        problem=problem,
        heads=heads,
        params={path: weights.read(path, model) for path in shapes},
        key_map={path: weights.names[family.full_name(path)] for path in shapes},
        left_over=weights.left_over(shapes),
    )


def export_folder(
    target: Path,
    *,
    name: str,
    model: Mapping[str, Any],
    head: str,
    params: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None = None,
    normalization: Normalization = ((), ()),
    labels: Sequence[str] = (),
    problem: str = "",
    max_length: int = 0,
) -> dict[str, str]:
    """Writes a folder that transformers' AutoModel…, AutoTokenizer or AutoImageProcessor open: whole, or not at all.

    The word embedding's rows beyond the tokenizer's pieces are cut. What transformers' class for the head has no place
    for is left out: the pooler under `mlm`, and RoFormer's under all but `classification`. BertModel draws the pooler
    that a `features` model may lack by chance, unless it is opened with `add_pooling_layer=False`.

    Args:
        target: absent, or an empty folder.
        name: the family in models.MODELS.
        model: all fields of its config, resolved; what is none of them is passed over.
        head: `mlm`, `causal_lm`, `classification`, `image_classification` or `features`.
        params: arrays by our path, with BatchNorm's statistics; more than the head needs may be there.
        tokenizer: of a model of texts.
        normalization: what pictures are normalised by, mean and deviation of each channel, of a model of pictures.
        labels: the names of the classification head's outputs; LABEL_0, LABEL_1 … without.
        problem: `multiclass`, `multilabel` or `regression`, of a classification head.
        max_length: the longest text in tokens that the tokenizer shall make; 0 for all positions.

    Returns:
        Our path -> the name of the tensor that was written.

    Raises:
        UserError: the target is taken or cannot be written, or transformers has no such model.
    """
    fields = [field.name for field in dataclasses.fields(MODELS[name].config)]
    model = {field: model[field] for field in fields if field in model}
    family = exporter(name, model)
    assert (tokenizer is None) == (not family.tokenizer), "a model of texts has a tokenizer, one of pictures has none"
    pieces, outputs = None, params["classifier/bias"].size if head in CLASSIFIES else 0
    if tokenizer:
        pieces = model["vocab_size"] = tokenizer.vocab_size
    if family.pooled:
        model["pooler"] = "pooler/kernel" in params and head in family.pooled
    arrays, key_map = {}, {}
    for path, shape in family.shapes(model, head, outputs).items():
        array = np.asarray(params[path], np.float32)[: pieces if path in PADDED else None]
        assert array.shape == shape, f"{path} is {array.shape}, not {shape}"
        arrays[path], key_map[path] = array, family.full_name(path)
    tensors = family.tensors(arrays, model)
    if family.position_table:
        head_size = model["hidden_size"] // model["num_heads"]
        tensors[family.position_table] = sinusoidal_positions(model["max_positions"], head_size)
    if head == "features":  # transformers writes a model without a head without the prefix
        tensors = {full.removeprefix(family.backbone): tensor for full, tensor in tensors.items()}
        key_map = {path: full.removeprefix(family.backbone) for path, full in key_map.items()}

    about = {"architectures": [family.classes[head]], "model_type": family.model_type, **family.write_config(model)}
    about["dtype"] = "float32"
    if tokenizer:
        about["pad_token_id"] = tokenizer.pad_id
    if tokenizer and head == "causal_lm":  # a text begins and ends with the same token
        about |= {"bos_token_id": tokenizer.sep_id, "eos_token_id": tokenizer.sep_id}
    if head in CLASSIFIES:
        names = labels or _numbered(outputs)
        assert len(names) == outputs, f"{len(names)} labels for {outputs} outputs"
        about["id2label"] = {str(i): label for i, label in enumerate(names)}
        about["label2id"] = {label: i for i, label in enumerate(names)}
        about["problem_type"] = {"": None, **{ours: theirs for theirs, ours in PROBLEMS.items()}}[problem]

    def fill(folder: Path) -> None:
        if tokenizer:
            longest = max_length or model["max_positions"]
            write_for_transformers(tokenizer, folder, generates=head == "causal_lm", max_length=longest)
        else:
            write_json(folder / PREPROCESSOR, preprocessor(model["image_size"], normalization))
        write_tensors(folder / SINGLE, tensors)
        write_json(folder / "config.json", about)

    write_whole(target, fill)
    return key_map


def _read_json(path: Path, field: str) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        mend = "Name a folder that a model was saved to, with config.json and model.safetensors."
        raise UserError(field, f"{path} ({error.strerror})", mend) from error
    except (ValueError, RecursionError) as error:
        raise UserError(field, f"{path} is no JSON ({error})", "Mend it, or download it again.") from error
    if not isinstance(about, dict):
        raise UserError(field, f"{path} holds no JSON object", "Mend it, or download it again.")
    return about


def _family(about: Mapping[str, Any], path: Path, field: str) -> Family:
    for family in FAMILIES.values():
        if family.model_type == about.get("model_type"):
            return family
    value = f"{path}: model_type is {about.get('model_type')!r}"
    raise UserError(field, value, f"Choose a model of type {', '.join(FAMILIES)}.")


def exporter(name: str, model: Mapping[str, Any]) -> Family:
    """The family that a model of ours is written as."""
    exported = [family for family in FAMILIES.values() if family.exported]
    families = [family for family in exported if family.name == name]
    if not families:
        known = ", ".join(dict.fromkeys(family.name for family in exported))
        raise UserError("config.model.name", f"{name!r}, which cannot be exported", f"These can: {known}.")
    for option in families[0].fixed:
        value = model.get(option, families[0].fixed[option])
        families, before = [family for family in families if family.fixed[option] == value], families
        if not families:
            known = " or ".join(dict.fromkeys(str(family.fixed[option]) for family in before))
            value = f"{value!r}, for which transformers has no class"
            raise UserError(f"config.model.{option}", value, f"Train with {option}={known} to export.")
    return families[0]


def _open_reader(
    folder: Path, about: Mapping[str, Any], family: Family, model: Mapping[str, Any], field: str
) -> tuple[Tokenizer | None, Tokenizer | None, Normalization]:
    """What makes rows of texts, or numbers of pictures: tokenizer, target's tokenizer, normalisation."""
    if not family.tokenizer:
        path = folder / PREPROCESSOR
        settings = _read_json(path, field) if path.is_file() else {}
        return None, None, read_normalization(settings, path, family.normalization, model["channels"], field)
    tokenizer, target_tokenizer = None, None
    if family.open_tokenizers:
        tokenizer, target_tokenizer = family.open_tokenizers(folder, field)
    else:
        tokenizer = _open_tokenizer(folder, about, family, field)
    _check_vocabulary(tokenizer, model["vocab_size"], folder / "config.json", field)
    return tokenizer, target_tokenizer, ((), ())


def _open_tokenizer(folder: Path, about: Mapping[str, Any], family: Family, field: str) -> Tokenizer:
    """The folder's tokenizer, if it is one that we cut texts with as transformers does."""
    settings_path = folder / "tokenizer_config.json"
    settings = _read_json(settings_path, field) if settings_path.is_file() else {}
    kind = str(settings.get("tokenizer_class") or about.get("tokenizer_class") or family.tokenizer)
    mend = "Choose a model with BERT's tokenizer, or one with a tokenizer.json."
    if kind.removesuffix("Fast") == "RoFormerTokenizer":  # its tokenizer.json leaves the cutting of words out
        raise UserError(field, f"{folder} has a {kind}, which cuts words with jieba", mend)
    tokenizer = load_tokenizer(folder, field)
    if not (folder / "tokenizer.json").is_file() and (folder / "vocab.txt").is_file():
        if kind.removesuffix("Fast") != "BertTokenizer":
            raise UserError(field, f"{folder} has a {kind} and no tokenizer.json", mend)
        added = settings.get("added_tokens_decoder")  # by id; most of them stand in vocab.txt as well
        ids = [id for id in added if id.isdecimal()] if isinstance(added, dict) else []
        more = any(len(id) > 9 or int(id) >= tokenizer.vocab_size for id in ids)
        if (folder / "added_tokens.json").is_file() or more:
            value = f"{folder} has pieces that are not in its vocab.txt, and no tokenizer.json"
            raise UserError(field, value, "Where transformers is, save its AutoTokenizer anew.")
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, rows: int, config_path: Path, field: str) -> None:
    if not 0 <= rows - tokenizer.vocab_size <= MOST_PADDING:
        value = f"{config_path}: vocab_size is {rows:,}, but the tokenizer has {tokenizer.vocab_size:,} pieces"
        raise UserError(field, value, "Use the tokenizer that was saved with the weights.")


def _is_for_wholes(about: Mapping[str, Any], family: Family, head: str, names: Mapping[str, str]) -> bool:
    """Whether the classifier is of whole texts or pictures: heads for tokens and for choices go by the same name."""
    architectures = about.get("architectures")
    if isinstance(architectures, list) and architectures:
        return any(str(architecture).endswith(CLASSIFIES[head]) for architecture in architectures)
    return not family.pooled or family.full_name("pooler/kernel") in names


def _read_labels(about: Mapping[str, Any], head: str, path: Path, field: str) -> tuple[str, ...]:
    """The labels by id; none if config.json does not name them."""
    named = about.get("id2label") or {}
    try:
        by_id = {int(id): str(label) for id, label in named.items()}
        "".join(by_id.values()).encode("utf-8")  # raises for half a character, which JSON's escapes can write
    except (AttributeError, ValueError):
        by_id = {-1: ""}
    if head == "image_classification":  # ImageNet, which most models of pictures know, has two kinds of "crane"
        twice = {label for label, times in collections.Counter(by_id.values()).items() if times > 1}
        by_id = {id: f"{label} ({id})" if label in twice else label for id, label in by_id.items()}
    if set(by_id) != set(range(len(by_id))) or len(set(by_id.values())) != len(by_id):
        mend = 'Mend it: {"0": "one label", "1": "another"}, without gaps and each label once.'
        raise UserError(field, f"{path}: id2label is {str(named)[:100]}", mend)
    return tuple(by_id[id] for id in range(len(by_id)))


def _numbered(outputs: int) -> tuple[str, ...]:
    """Labels as transformers calls those that have no name."""
    return tuple(f"LABEL_{i}" for i in range(outputs))


def _read_problem(about: Mapping[str, Any], head: str, outputs: int, path: Path, field: str) -> str:
    kind = about.get("problem_type") or ("regression" if outputs == 1 else "single_label_classification")
    if head == "image_classification" and kind != "single_label_classification":
        mend = "Choose a model that gives each picture one of several labels: no other is computed."
        raise UserError(field, f"{path}: problem_type is {kind!r}", mend)
    for theirs, ours in PROBLEMS.items():
        if theirs == kind:
            return ours
    raise UserError(field, f"{path}: problem_type is {kind!r}", f"Mend it: {', '.join(PROBLEMS)}.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_whole(target: Path, fill: Callable[[Path], None]) -> None:
    """The folder `target`, filled by `fill(folder)`; under its own name only when all is written.

    Raises:
        UserError: there is something in it already, or it cannot be written.
    """
    target = Path(os.path.expanduser(target))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("--to", f"{target} is there already", "Name a folder that is empty or not there yet.")
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        folder = scratch / target.name  # the scratch folder itself is private
        folder.mkdir()
        fill(folder)
        folder.replace(target)
    except (OSError, SafetensorError) as error:
        raise UserError("--to", f"{target} ({error})", "Name a folder that can be written, with room on it.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
