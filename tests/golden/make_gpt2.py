"""Make gpt2.npz: what transformers' GPT-2 computes on random weights, for tests that need no PyTorch.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_gpt2.py

The file in the repository was made with these versions on CPython 3.11, on the CPU.

Arrays, float32 but for the integer inputs; batch 3, length 24, hidden 32, vocabulary 96, 2 layers of 4 heads:

- `weights/NAME`, `grads/NAME`: each parameter under its Hugging Face name, and the gradient of `loss` for it. The head
  is tied to `transformer.wte.weight` and stands there once.
- `input_ids`, `attention_mask` (1 for text, 0 for the padding that ends rows 1 and 2): int32 [3, 24].
- `hidden_states` [3, 3, 24, 32], first the embeddings and then each layer, the last with the final norm; `logits`
  [3, 24, 96]; `loss` [], the mean cross-entropy of each text's tokens from the second on. At the padding hidden states
  and logits mean nothing.
- `continued` [3, 12]: what greedy decoding says after the first 8 tokens of each row.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SEED = 20190214
BATCH, LENGTH = 3, 24
TEXT_LENGTHS = (24, 17, 9)
FIRST_WORD = 5

CONFIG = transformers.GPT2Config(
    vocab_size=96,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_inner=64,
    n_positions=LENGTH,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=None,
    # Ten times GPT-2's own: at 0.02 attention over so narrow a model is all but uniform, and mistakes hardly show.
    initializer_range=0.2,
)


def build() -> transformers.GPT2LMHeadModel:
    """A model with no bias at 0 and no scale at 1."""
    torch.manual_seed(SEED)
    model = transformers.GPT2LMHeadModel._from_config(CONFIG, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_inputs() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(SEED)
    inputs = {name: np.zeros((BATCH, LENGTH), np.int32) for name in ("input_ids", "attention_mask")}
    for row, length in enumerate(TEXT_LENGTHS):
        inputs["input_ids"][row, :length] = draw.integers(FIRST_WORD, CONFIG.vocab_size, length)
        inputs["attention_mask"][row, :length] = 1
    return inputs


def compute(model: transformers.GPT2LMHeadModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output and gradient, in the model's own precision."""
    ids = torch.from_numpy(inputs["input_ids"]).long()
    mask = torch.from_numpy(inputs["attention_mask"]).long()
    labels = torch.where(mask > 0, ids, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    model.zero_grad()
    output.loss.backward()
    arrays = {"hidden_states": torch.stack(output.hidden_states), "logits": output.logits, "loss": output.loss}
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        arrays[f"grads/{name}"] = parameter.grad
    return {name: tensor.detach().numpy().copy() for name, tensor in arrays.items()}


def main() -> None:
    model, inputs = build(), make_inputs()
    weights = {f"weights/{name}": parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    arrays = compute(model, inputs)
    prompts = torch.from_numpy(inputs["input_ids"][:, :8]).long()
    with torch.no_grad():
        said = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    arrays["continued"] = said[:, 8:].numpy().astype(np.int32)
    exact = compute(model.double(), inputs)
    path = Path(__file__).with_name("gpt2.npz")
    np.savez_compressed(path, **weights, **inputs, **arrays)

    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    print(f"{path.name}: {path.stat().st_size:,} bytes · {len(weights)} parameters")
    print("largest magnitude, and largest error against the same in float64:")
    for name in exact:
        real, ours = exact[name], arrays[name]
        if name == "hidden_states":
            real, ours = (array[:, inputs["attention_mask"] > 0] for array in (real, ours))
        print(f"  {name:65s} {str(arrays[name].shape):18s} {np.abs(real).max():9.3g} {np.abs(real - ours).max():9.1e}")
    print(f"loss {float(arrays['loss']):.7f}")


if __name__ == "__main__":
    main()
