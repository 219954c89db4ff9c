"""Make resnet.npz: what transformers' ResNet computes on random weights, for tests that need no PyTorch.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_resnet.py

The file in the repository was made with these versions on CPython 3.11, on the CPU.

Arrays, float32 but for the labels; batch 4, pictures of 3 × 26 × 26, 5 labels. Two models, `basic` with depths (1, 2)
and `bottleneck` with depths (2, 1) and the stride in the first convolution, widths (8, 16) and a stem of 8; each has

- `pixel_values` [4, 3, 26, 26], `labels` int32 [4]: the inputs, the same for both;
- `MODEL/weights/NAME`, `MODEL/statistics/NAME`: parameters and running statistics under their Hugging Face names;
- `MODEL/eval/hidden_states/I`, `MODEL/eval/logits`: by the running statistics; and in training, by the batch's,
  `MODEL/train/hidden_states/I`, `MODEL/train/logits`, `MODEL/train/loss` [], the mean cross-entropy,
  `MODEL/train/grads/NAME`, its gradients, and `MODEL/train/statistics/NAME`, the new running statistics.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SEED = 20151210
BATCH, SIZE, LABELS = 4, 26, 5
COMMON = {"embedding_size": 8, "hidden_sizes": [8, 16], "num_labels": LABELS}
CONFIGS = {
    "basic": transformers.ResNetConfig(**COMMON, depths=[1, 2], layer_type="basic"),
    "bottleneck": transformers.ResNetConfig(
        **COMMON, depths=[2, 1], layer_type="bottleneck", downsample_in_bottleneck=True
    ),
}


def build(config: transformers.ResNetConfig) -> transformers.ResNetForImageClassification:
    """A model with no bias at 0, no scale at 1, and running statistics that are none of the batch's."""
    torch.manual_seed(SEED)
    model = transformers.ResNetForImageClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "normalization" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
    return model


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"statistics/{name}": b.clone() for name, b in model.named_buffers() if not name.endswith("tracked")}


def compute(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output, gradient and statistic, in the model's own precision."""
    pixels = torch.from_numpy(inputs["pixel_values"]).to(next(model.parameters()).dtype)
    labels = torch.from_numpy(inputs["labels"]).long()
    arrays = {}
    for mode in ("eval", "train"):
        model.train(mode == "train")
        output = model(pixel_values=pixels, labels=labels, output_hidden_states=True)
        arrays |= {f"{mode}/hidden_states/{i}": state for i, state in enumerate(output.hidden_states)}
        arrays[f"{mode}/logits"] = output.logits
    output.loss.backward()
    arrays["train/loss"] = output.loss
    arrays |= {f"train/grads/{name}": parameter.grad for name, parameter in model.named_parameters()}
    arrays |= {f"train/{name}": buffer for name, buffer in statistics(model).items()}
    return {name: tensor.detach().numpy().copy() for name, tensor in arrays.items()}


def main() -> None:
    draw = np.random.default_rng(SEED)
    inputs = {
        "pixel_values": draw.normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32),
        "labels": draw.integers(0, LABELS, BATCH).astype(np.int32),
    }
    arrays = dict(inputs)
    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    print("largest magnitude, and largest error against the same in float64:")
    for kind, config in CONFIGS.items():
        model = build(config)
        given = {f"weights/{name}": parameter for name, parameter in model.named_parameters()} | statistics(model)
        arrays |= {f"{kind}/{name}": tensor.detach().numpy().copy() for name, tensor in given.items()}
        computed = compute(model, inputs)
        arrays |= {f"{kind}/{name}": array for name, array in computed.items()}
        exact = compute(build(config).double(), inputs)
        for name in exact:
            error = np.abs(exact[name] - computed[name]).max()
            print(f"  {kind}/{name:75s} {str(exact[name].shape):18s} {np.abs(exact[name]).max():9.3g} {error:9.1e}")
    path = Path(__file__).with_name("resnet.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size:,} bytes · {len(arrays)} arrays")


if __name__ == "__main__":
    main()
