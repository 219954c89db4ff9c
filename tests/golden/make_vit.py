"""Make vit.npz: what transformers' ViT computes on random weights, for tests that need no PyTorch.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_vit.py

The file in the repository was made with these versions on CPython 3.11, on the CPU.

Arrays, float32 but for labels and pixels; batch 3, pictures of 3 × 12 × 12 in patches of 4 × 4, hidden 16, 2 layers of
2 heads, 5 labels:

- `weights/NAME`: each parameter under the name that transformers saves it by; `grads/NAME`: the gradient of `loss`.
- `pixel_values` [3, 3, 12, 12], `labels` int32 [3]: the inputs.
- `hidden_states` [3, 3, 10, 16], first the embeddings and then each layer, the last with the final norm; `logits`
  [3, 5]; `loss` [], the mean cross-entropy.
- `pixel_values_20` [3, 3, 20, 20], `positions_20` [26, 16], `logits_20` [3, 5]: the same model on larger pictures, its
  positions interpolated; `positions_8` [5, 16]: interpolated for pictures of 8 × 8.
- `pixels` uint8 [3, 12, 12, 3]; `read` [3, 3, 12, 12], what the image processor makes of them; `read_logits` [3, 5].
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

SEED = 20201022
BATCH, SIZE, PATCH, LARGER, SMALLER, LABELS = 3, 12, 4, 20, 8, 5

CONFIG = transformers.ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=SIZE,
    patch_size=PATCH,
    num_labels=LABELS,
    # Ten times ViT's own: at 0.02 attention over so narrow a model is all but uniform, and mistakes hardly show.
    initializer_range=0.2,
)


def build() -> transformers.ViTForImageClassification:
    """A model with no bias at 0 and no scale at 1."""
    torch.manual_seed(SEED)
    model = transformers.ViTForImageClassification._from_config(CONFIG, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "layernorm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def saved(model: transformers.ViTForImageClassification) -> dict[str, np.ndarray]:
    """The parameters by the names in a folder, which are not those in memory."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def gradients(model: transformers.ViTForImageClassification) -> dict[str, np.ndarray]:
    """Those that the parameters hold, by the same names: saved in the place of the parameters."""
    held = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        arrays = saved(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(held[name])
    return arrays


def compute(model: transformers.ViTForImageClassification, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output and gradient, in the model's own precision."""
    kind = next(model.parameters()).dtype
    names = ("pixel_values", f"pixel_values_{LARGER}", "read")
    pixels, larger, read = (torch.from_numpy(inputs[name]).to(kind) for name in names)
    output = model(pixel_values=pixels, labels=torch.from_numpy(inputs["labels"]).long(), output_hidden_states=True)
    model.zero_grad()
    output.loss.backward()
    states = [*output.hidden_states[:-1], model.vit(pixels).last_hidden_state]
    tensors = {"hidden_states": torch.stack(states), "logits": output.logits, "loss": output.loss}
    with torch.no_grad():
        tensors[f"logits_{LARGER}"] = model(pixel_values=larger, interpolate_pos_encoding=True).logits
        tensors["read_logits"] = model(pixel_values=read).logits
        for size in (LARGER, SMALLER):
            places = torch.zeros(1, 1 + (size // PATCH) ** 2, CONFIG.hidden_size, dtype=kind)
            tensors[f"positions_{size}"] = model.vit.embeddings.interpolate_pos_encoding(places, size, size)[0]
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    return arrays | {f"grads/{name}": array for name, array in gradients(model).items()}


def main() -> None:
    draw = np.random.default_rng(SEED)
    inputs = {
        "pixel_values": draw.normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32),
        f"pixel_values_{LARGER}": draw.normal(size=(BATCH, 3, LARGER, LARGER)).astype(np.float32),
        "labels": draw.integers(0, LABELS, BATCH).astype(np.int32),
    }
    inputs["pixels"] = draw.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    processor = transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    inputs["read"] = processor(list(inputs["pixels"]), return_tensors="np")["pixel_values"].astype(np.float32)
    model = build()
    weights = {f"weights/{name}": array for name, array in saved(model).items()}
    arrays = compute(model, inputs)
    exact = compute(model.double(), inputs)
    path = Path(__file__).with_name("vit.npz")
    np.savez_compressed(path, **weights, **inputs, **arrays)

    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    print(f"{path.name}: {path.stat().st_size:,} bytes · {len(weights)} parameters")
    print("largest magnitude, and largest error against the same in float64:")
    for name, real in exact.items():
        error = np.abs(real - arrays[name]).max()
        print(f"  {name:65s} {str(arrays[name].shape):18s} {np.abs(real).max():9.3g} {error:9.1e}")
    print(f"loss {float(arrays['loss']):.7f}")


if __name__ == "__main__":
    main()
