"""Make bert.npz: what transformers' BERT computes on random weights, for tests that need no PyTorch.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_bert.py

The file in the repository was made with these versions on CPython 3.11, on the CPU.

Arrays, float32 but for the integer inputs; batch 3, length 24, hidden 32, vocabulary 96, 2 layers of 4 heads:

- `weights/NAME`, `grads/NAME`: each parameter under its Hugging Face name, and the gradient of `loss` for it. The
  decoder is tied to `bert.embeddings.word_embeddings.weight` and `cls.predictions.bias` and stands there once.
  The pooler takes no part in the loss: its gradients are zeros.
- `input_ids`, `token_type_ids`, `attention_mask` (1 for text, 0 for the padding that ends rows 1 and 2), and `labels`
  (-100 where nothing is predicted): int32 [3, 24].
- `hidden_states` [3, 3, 24, 32], first the embeddings and then each layer; `pooler_output` [3, 32]; `logits`
  [3, 24, 96]; `loss` [], the mean cross-entropy over all labels. At the padding hidden states and logits mean nothing.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SEED = 20181011
BATCH, LENGTH = 3, 24
TEXT_LENGTHS = (24, 17, 9)
FIRST_WORD = 5  # below it: [PAD] [UNK] [CLS] [SEP] [MASK]
CLS, SEP, MASK = 2, 3, 4

CONFIG = transformers.BertConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
    type_vocab_size=2,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    # Ten times BERT's own: at 0.02 attention over so narrow a model is all but uniform, and mistakes in it hardly show.
    initializer_range=0.2,
)


def build() -> transformers.BertForMaskedLM:
    """A masked language model whose encoder has a pooler too, with no bias at 0 and no scale at 1."""
    torch.manual_seed(SEED)
    model = transformers.BertForMaskedLM._from_config(CONFIG, attn_implementation="eager")
    model.bert = transformers.BertModel._from_config(CONFIG, attn_implementation="eager")
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_inputs() -> dict[str, np.ndarray]:
    """Each row a pair of texts, [CLS] A [SEP] B [SEP], about a fifth of its words to predict, most of them masked."""
    draw = np.random.default_rng(SEED)
    shape = (BATCH, LENGTH)
    inputs = {name: np.zeros(shape, np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")}
    inputs["labels"] = np.full(shape, -100, np.int32)
    for row, length in enumerate(TEXT_LENGTHS):
        middle = length // 2
        tokens = draw.integers(FIRST_WORD, CONFIG.vocab_size, length, dtype=np.int32)
        tokens[0] = CLS
        tokens[[middle, length - 1]] = SEP
        words = np.flatnonzero(tokens >= FIRST_WORD)
        chosen = draw.choice(words, size=len(words) // 5 + 1, replace=False)
        inputs["labels"][row, chosen] = tokens[chosen]
        tokens[chosen[1:]] = MASK  # one chosen word a row stays as it was
        inputs["input_ids"][row, :length] = tokens
        inputs["token_type_ids"][row, middle + 1 : length] = 1
        inputs["attention_mask"][row, :length] = 1
    return inputs


def compute(model: transformers.BertForMaskedLM, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output and gradient, in the model's own precision."""
    batch = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
    output = model(**batch)
    model.zero_grad()
    output.loss.backward()
    del batch["labels"]
    with torch.no_grad():
        encoded = model.bert(**batch, output_hidden_states=True)
    arrays = {
        "hidden_states": torch.stack(encoded.hidden_states),
        "pooler_output": encoded.pooler_output,
        "logits": output.logits,
        "loss": output.loss,
    }
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        arrays[f"grads/{name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return {name: tensor.detach().numpy().copy() for name, tensor in arrays.items()}


def main() -> None:
    model, inputs = build(), make_inputs()
    weights = {f"weights/{name}": parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    arrays = compute(model, inputs)
    exact = compute(model.double(), inputs)
    path = Path(__file__).with_name("bert.npz")
    np.savez_compressed(path, **weights, **inputs, **arrays)

    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    labels = int((inputs["labels"] >= 0).sum())
    print(f"{path.name}: {path.stat().st_size:,} bytes · {len(weights)} parameters · {labels} labels")
    print("largest magnitude, and largest error against the same in float64:")
    for name in arrays:
        real = exact[name][:, inputs["attention_mask"] > 0] if name == "hidden_states" else exact[name]
        ours = arrays[name][:, inputs["attention_mask"] > 0] if name == "hidden_states" else arrays[name]
        print(f"  {name:65s} {str(arrays[name].shape):18s} {np.abs(real).max():9.3g} {np.abs(real - ours).max():9.1e}")
    print(f"loss {float(arrays['loss']):.7f}")


if __name__ == "__main__":
    main()
