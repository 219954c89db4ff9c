"""LoRA adapters as a folder of PEFT's: small, and laid over the base model by `peft.PeftModel.from_pretrained`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interop.folder import exporter, write_json, write_whole
from interop.tensors import write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."  # PEFT's name for the model under its own two wrappers


def export_adapters(
    target: Path,
    *,
    model: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    adapters: Mapping[str, np.ndarray],
    rank: int,
    alpha: float,
    base: str,
) -> dict[str, str]:
    """Writes the adapters of a text classifier with its pooler and classifier: whole, or not at all.

    Args:
        target: absent, or an empty folder.
        model: all fields of the model's config, resolved, with its `name`.
        params: arrays by our path; those of the backbone are not written.
        adapters: `PATH/kernel/a` [inputs, rank] and `PATH/kernel/b` [rank, outputs].
        base: what the adapters belong on: a folder, or a name of the Hub.

    Returns:
        Our path -> the name of the tensor that was written.

    Raises:
        UserError: the target is taken or cannot be written, or transformers has no such model.
    """
    family = exporter(model["name"], model)
    tensors, key_map, targets = {}, {}, []
    for path, array in adapters.items():
        kernel, _, side = path.rpartition("/")
        module = family.full_name(kernel).removesuffix(".weight")
        key_map[f"lora/{path}"] = name = f"{ROOT}{module}.lora_{side.upper()}.weight"
        # Outputs that rotary positions turn lie in another order there; inputs never do.
        tensors[name] = family.to_theirs(kernel, array, model) if side == "b" else array.T
        targets += [module] * (side == "a")
    heads: dict[str, None] = {}  # in order, each once
    for path, array in params.items():
        if not path.startswith(("embeddings/", "encoder/")):
            full = family.full_name(path)
            key_map[path] = ROOT + full
            tensors[ROOT + full] = family.to_theirs(path, array, model)
            heads[full.removeprefix(family.backbone).split(".")[0]] = None
    about = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": list(heads),
    }

    def fill(folder: Path) -> None:
        write_tensors(folder / WEIGHTS, tensors)
        write_json(folder / CONFIG, about)

    write_whole(target, fill)
    return key_map
