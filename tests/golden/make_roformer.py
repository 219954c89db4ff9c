"""Make roformer.npz: what transformers' RoFormer computes on random weights, and how its classes name their tensors.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_roformer.py

The file in the repository was made with these versions on CPython 3.11, on the CPU.

Arrays, float32 but for the integer inputs; batch 2, length 20, hidden 32, vocabulary 48, 2 layers of 4 heads, 3 labels:

- `weights/NAME`: each tensor of RoFormerForMaskedLM and RoFormerForSequenceClassification, which share the backbone.
- `input_ids`, `token_type_ids`, `attention_mask` (1 for text, 0 for the padding that ends row 1): int32 [2, 20].
- `hidden_states` [3, 2, 20, 32], first the embeddings and then each layer; `mlm_logits` [2, 20, 48];
  `classification_logits` [2, 3]. At the padding the first two mean nothing.
- `tensors/CLASS`: the names of the tensors in what CLASS saves, for six classes of transformers, tied ones once.
"""

import tempfile
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers

SEED = 20210420
LABELS = 3
TEXT_LENGTHS = (20, 13)
SIZES = dict(
    vocab_size=48,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    hidden_act="gelu",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    # Ten times the usual: at 0.02 attention is all but uniform, and the order of rotary pairs would hardly show.
    initializer_range=0.2,
    num_labels=LABELS,
)


def build() -> tuple[transformers.RoFormerForMaskedLM, transformers.RoFormerForSequenceClassification]:
    """Two heads on one backbone, with no bias at 0 and no scale at 1."""
    torch.manual_seed(SEED)
    config = transformers.RoFormerConfig(**SIZES)
    mlm, classifier = transformers.RoFormerForMaskedLM(config), transformers.RoFormerForSequenceClassification(config)
    classifier.roformer = mlm.roformer
    parameters = {**dict(mlm.named_parameters()), **dict(classifier.named_parameters())}
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return mlm.eval(), classifier.eval()


def make_inputs() -> dict[str, np.ndarray]:
    """Each row a pair of texts."""
    draw = np.random.default_rng(SEED)
    shape = (len(TEXT_LENGTHS), max(TEXT_LENGTHS))
    inputs = {name: np.zeros(shape, np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")}
    for row, length in enumerate(TEXT_LENGTHS):
        inputs["input_ids"][row, :length] = draw.integers(5, SIZES["vocab_size"], length)
        inputs["token_type_ids"][row, length // 2 : length] = 1
        inputs["attention_mask"][row, :length] = 1
    return inputs


def compute(mlm: torch.nn.Module, classifier: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    batch = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
    with torch.no_grad():
        output = mlm(**batch, output_hidden_states=True)
        arrays = {
            "hidden_states": torch.stack(output.hidden_states),
            "mlm_logits": output.logits,
            "classification_logits": classifier(**batch).logits,
        }
    return {name: tensor.numpy().copy() for name, tensor in arrays.items()}


def saved_tensors(family: str) -> dict[str, np.ndarray]:
    """The names in model.safetensors of a family's three classes."""
    found = {}
    config = getattr(transformers, f"{family}Config")(**SIZES)
    for kind in ("Model", "ForMaskedLM", "ForSequenceClassification"):
        with tempfile.TemporaryDirectory() as folder:
            getattr(transformers, family + kind)(config).save_pretrained(folder)
            with safetensors.safe_open(Path(folder) / "model.safetensors", "numpy") as stream:
                found[f"tensors/{family}{kind}"] = np.array(sorted(stream.keys()))
    return found


def main() -> None:
    (mlm, classifier), inputs = build(), make_inputs()
    named = {**dict(mlm.named_parameters()), **dict(classifier.named_parameters())}
    weights = {f"weights/{name}": parameter.detach().numpy().copy() for name, parameter in named.items()}
    arrays = compute(mlm, classifier, inputs)
    exact = compute(mlm.double(), classifier.double(), inputs)
    path = Path(__file__).with_name("roformer.npz")
    np.savez_compressed(path, **weights, **inputs, **arrays, **saved_tensors("Bert"), **saved_tensors("RoFormer"))

    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    print(f"{path.name}: {path.stat().st_size:,} bytes · {len(weights)} tensors")
    print("largest magnitude, and largest error against the same in float64:")
    for name, array in arrays.items():
        text = inputs["attention_mask"] > 0
        ours, real = array, exact[name]
        if name != "classification_logits":
            ours, real = (np.moveaxis(x, (-3, -2), (0, 1))[text] for x in (ours, real))
        print(f"  {name:25s} {str(array.shape):18s} {np.abs(real).max():9.3g} {np.abs(real - ours).max():9.1e}")


if __name__ == "__main__":
    main()
