"""Takes weights in from Hugging Face folders, gives them back, and proves that the two are the same.

python convert.py import --from=FOLDER --workdir=DIR            FOLDER, or hf:NAME of the Hub; makes a run at step 0
python convert.py export --workdir=DIR --to=FOLDER [--checkpoint=last|best|STEP] [--adapters=true]
                                                                --adapters=true: LoRA's and the head alone, for PEFT
python convert.py verify --workdir=DIR --with=FOLDER [--checkpoint=last|best|STEP]
python convert.py check --workdir=DIR                           which checkpoints are whole
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import tasks
from cli import commandline, workdir
from cli import config as configs
from cli.origin import HUB, find_folder
from configs import base, bert_classify, bert_mlm, gpt_lm, transformer_mt, vit_classify
from errors import UserError
from interop.adapters import export_adapters
from interop.folder import ForeignModel, export_folder, open_folder
from models import parameters
from training.best import Best
from training.checkpoints import Checkpoints
from training.phases import chosen_rules, make_phases

FLAGS: dict[str, dict[str, Any]] = {
    "import": {"from": "", "workdir": ""},
    "export": {"workdir": "", "to": "", "checkpoint": "last", "adapters": False},
    "verify": {"workdir": "", "with": "", "checkpoint": "last"},
    "check": {"workdir": ""},
}
CLOSE = 1e-4  # the largest difference of outputs that verify lets pass
USUAL_SIZE = 224  # of the pictures of a folder that names none


def main(argv: list[str]) -> int:
    verb = argv[1] if len(argv) > 1 else ""
    if verb not in FLAGS:
        if verb.lstrip("-").startswith("h"):
            print((__doc__ or "").strip())
            return 0
        near = difflib.get_close_matches(verb, FLAGS, n=1) or ["import"]
        raise UserError(
            "convert.py", repr(verb), f"Did you mean {near[0]}? Give import, export, verify or check first."
        )
    flags = commandline.parse(argv[1:], FLAGS[verb], __doc__ or "")
    for name, value in flags.items():
        if value == "":
            raise UserError(f"--{name}", "is missing", f"Give it: --{name}=…")
    return {"import": _import, "export": _export, "verify": _verify, "check": _check}[verb](flags)


def _import(flags: Mapping[str, Any]) -> int:
    folder = Path(flags["workdir"])
    workdir.check_place(folder)
    if (folder / "config.json").is_file():
        raise UserError("--workdir", f"{folder} holds a run already", "Give another folder.")
    found = open_folder(find_folder(flags["from"], "--from"), "--from")
    config = _config_of(found, flags["from"], "--from")
    task = _task_of(found, config)
    _, shapes, state_shapes = parameters.structure(task.build)
    account = parameters.account(shapes, state_shapes, found.params, "--from")
    for path in account.loaded:
        print(f"loaded     {path} {list(found.params[path].shape)} from {found.key_map[path]}")
    for path in account.new:
        print(f"new        {path}: the folder has none, it is drawn anew")
    for name in (*account.left_over, *found.left_over):
        print(f"left over  {name}")

    weights = {path: jnp.asarray(weight) for path, weight in found.params.items()}
    drawn = parameters.initialize(task.build, jax.random.key(config.seed))
    params, model_state = (parameters.graft(tree, weights) for tree in drawn)
    workdir.create(folder)
    workdir.write_json(folder / "config.json", configs.as_json(config))
    task.save(folder)
    facts = {"parameters": parameters.count(params), "fingerprints": task.fingerprints()}
    workdir.write_json(folder / "run.json", workdir.describe_start(folder, 0, facts))
    checkpoints = Checkpoints(folder / "checkpoints")
    state = {"params": params, "step": jnp.zeros((), jnp.int32)} | ({"model_state": model_state} if model_state else {})
    checkpoints.save(state, {"data": None, "best": Best().get_state()})
    checkpoints.close()
    print(f"{parameters.count(params):,} parameters, a run of task {config.task} at step 0: {folder}")
    return 0


def _config_of(found: ForeignModel, name: str, field: str) -> Any:
    """The config of a run with these weights and with the head that they have."""
    if found.tokenizer is None:
        return _config_of_pictures(found, name, field)
    if "classification" in found.heads:
        config = bert_classify.get_config("base")
        config.data.problem, config.data.labels = found.problem, found.labels
        config.model.num_labels = found.params["classifier/bias"].size
    elif "causal_lm" in found.heads:
        config = gpt_lm.get_config("base")
    elif "seq2seq" in found.heads:
        config = transformer_mt.get_config("base")
        config.data.source_len = found.model["max_positions"]
    elif "mlm" in found.heads:
        config = bert_mlm.get_config("base")
    else:
        config = base.get_config()
        config.task = "features"
    config.init_from = config.data.tokenizer = name
    config.dtype = "float32"
    config.data.seq_len = found.model["max_positions"]
    for option, value in {"name": found.name, **found.model}.items():
        config.model[option] = value
    return config


def _config_of_pictures(found: ForeignModel, name: str, field: str) -> Any:
    if not found.heads:
        words = f"--config=configs/vit_classify.py:base --config.model.name={found.name} --config.init_from={name}"
        raise UserError(field, f"{name} has no classifier", f"Begin a run with it that trains one: train.py {words} …")
    config = vit_classify.get_config("base")
    config.init_from = name
    config.dtype = "float32"
    config.data.labels, (config.data.mean, config.data.std) = found.labels, found.normalization
    size = found.model.get("image_size", USUAL_SIZE)
    config.data.image_size, config.data.channels = size, found.model["channels"]
    outputs = found.params["classifier/bias"].size
    config.model = ConfigDict({"name": found.name, "image_size": size, "num_labels": outputs} | found.model)
    return config


def _task_of(found: ForeignModel, config: Any) -> Any:
    """The task with the folder's tokenizers."""
    if found.tokenizer is None:
        return tasks.TASKS[config.task](config)
    target = {"target_tokenizer": found.target_tokenizer} if found.target_tokenizer else {}
    return tasks.TASKS[config.task](config, found.tokenizer, **target)


def _export(flags: Mapping[str, Any]) -> int:
    if flags["adapters"]:
        return _export_adapters(flags)
    task, model = tasks.restore(flags["workdir"], flags["checkpoint"])
    config, data = task.config, task.config.data
    _, params, model_state = parameters.split(model)
    arrays = _in_users_units(params, config) | _arrays(model_state)
    tokenizer, labels = getattr(task, "tokenizer", None), tuple(data.get("labels", ()))
    key_map = export_folder(
        Path(flags["to"]),
        name=config.model.name,
        model=config.model.to_dict(),
        head=config.task,
        params=arrays,
        tokenizer=tokenizer,
        normalization=(data.get("mean", ()), data.get("std", ())),
        labels=labels,
        problem=data.get("problem", ""),
        max_length=data.get("seq_len", 0),
    )
    for path, name in key_map.items():
        print(f"written  {path} as {name}")
    reader = "what pictures are normalised by" if tokenizer is None else "the tokenizer"
    print(f"{len(key_map)} parameters of task {config.task}, with {reader}: {flags['to']}")
    return 0


def _export_adapters(flags: Mapping[str, Any]) -> int:
    task, tree, _ = tasks.restore_params(flags["workdir"], flags["checkpoint"])
    config = task.config
    adapters = parameters.flatten(tree.get("lora", {}))
    mend = "Leave --adapters out: the whole model is written, with the adapters merged."
    for lacking, value in (
        (not adapters, "has no adapters"),
        (config.task != "classification", f"is a run of task {config.task}"),
        (not config.init_from, "has no init_from: nobody else has what its adapters belong on"),
    ):
        if lacking:
            raise UserError("--adapters", f"{flags['workdir']} {value}", mend)
    chosen = config.optimizer
    trained = chosen_rules(chosen.rules, chosen.layer_decay, config.model.num_layers, adapters=True)
    trained_paths = {path for phase in make_phases(tree, trained, chosen.phases) for path in phase.rates}
    of_base = [path for path in sorted(trained_paths) if path.startswith(("embeddings/", "encoder/"))]
    of_head = [f"lora/{path}" for path in adapters if not path.startswith("encoder/")]
    if of_base or of_head:
        raise UserError("--adapters", f"{flags['workdir']} has trained {(of_base + of_head)[0]} as well", mend)
    key_map = export_adapters(
        Path(flags["to"]),
        model=config.model.to_dict(),
        params=_in_users_units({name: part for name, part in tree.items() if name != "lora"}, config),
        adapters={path: np.asarray(leaf) for path, leaf in adapters.items()},
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        base=config.init_from.removeprefix(HUB),
    )
    for path, name in key_map.items():
        print(f"written  {path} as {name}")
    print(f"{len(key_map)} parameters, to be laid over {config.init_from}: {flags['to']}")
    return 0


def _in_users_units(params: parameters.Tree, config: Any) -> dict[str, np.ndarray]:
    """The arrays by path. A regression's head speaks of targets of mean 0 and deviation 1: here of the user's own."""
    arrays = _arrays(params)
    if config.data.get("problem") == "regression":
        arrays["classifier/kernel"] = arrays["classifier/kernel"] * np.float32(config.data.target_scale)
        scaled = arrays["classifier/bias"] * np.float32(config.data.target_scale)
        arrays["classifier/bias"] = scaled + np.float32(config.data.target_mean)
    return arrays


def _arrays(tree: parameters.Tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in parameters.flatten(tree).items()}


def _check(flags: Mapping[str, Any]) -> int:
    folder = Path(flags["workdir"])
    tasks.read_config(folder)
    Checkpoints(folder / "checkpoints").report(print)
    return 0


def _verify(flags: Mapping[str, Any]) -> int:
    task, model = tasks.restore(flags["workdir"], flags["checkpoint"])
    found = open_folder(find_folder(flags["with"], "--with"), "--with")
    _, *trees = parameters.split(model)
    ours = {path: array for tree in trees for path, array in _arrays(tree).items()}
    tokenizer = getattr(task, "tokenizer", None)
    differing = []
    for path in sorted(ours.keys() | found.params.keys()):
        if path not in found.params or path not in ours:
            differing.append(path)
            print(f"{'missing there' if path in ours else 'unused':14} {path}")
            continue
        mine, theirs = ours[path], found.params[path]
        if tokenizer and (path.endswith("word/embedding") or path == "mlm_head/bias"):
            # What is behind the tokenizer's pieces is padding.
            mine, theirs = mine[: tokenizer.vocab_size], theirs[: tokenizer.vocab_size]
        if mine.shape != theirs.shape:
            differing.append(path)
            print(f"{'other shape':14} {path} {list(mine.shape)} here, {list(theirs.shape)} there")
        else:
            print(f"{np.abs(mine - theirs).max():<14.2e} {path} {list(mine.shape)} = {found.key_map[path]}")
    if getattr(found.tokenizer, "vocabulary_hash", "") != getattr(tokenizer, "vocabulary_hash", ""):
        raise UserError("--with", f"{flags['with']} has another tokenizer than the run", "Export the run anew.")

    config = _config_of(found, flags["with"], "--with")
    if tokenizer:
        config.data.seq_len = task.config.data.seq_len
    elif "image_size" not in found.model:  # it computes on pictures of any size
        config.model.image_size = task.config.model.image_size
    other = _task_of(found, config)
    graphdef, *shapes = parameters.structure(other.build)
    there = nnx.merge(graphdef, *(parameters.graft(tree, found.params) for tree in shapes))
    task.config.dtype = "float32"  # whatever the run computes in
    here = nnx.merge(parameters.structure(task.build)[0], *trees)
    worst = 0.0
    theirs_said = other.probe(there)
    for name, mine in task.probe(here).items():
        said = theirs_said.get(name)
        if said is not None and said.shape == mine.shape:
            difference = float(np.abs(mine - said).max())
            worst = max(worst, difference)
            print(f"{difference:<14.2e} outputs: {name} {list(mine.shape)}")
    if worst > CLOSE or differing:
        value = f"is not the run's: outputs differ by up to {worst:.2e}, {len(differing)} parameters do not fit"
        mend = "Export the run anew, or name the folder that it came from."
        raise UserError("--with", f"{flags['with']} {value}", mend)
    print(f"the same: outputs differ by {worst:.2e} at most, over {len(found.params)} parameters")
    return 0


if __name__ == "__main__":
    commandline.run(main)
