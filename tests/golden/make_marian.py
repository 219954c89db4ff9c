"""Make marian.npz: what transformers' MarianMT computes on random weights, for tests that need no PyTorch.

Run by hand, in an environment of its own, when the golden arrays must change:

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/python tests/golden/make_marian.py

The file in the repository was made with these versions on CPython 3.11, on the CPU.

Arrays, float32 but for the integer inputs; batch 3, source length 16, target length 12, hidden 32, vocabulary 96, 2 + 2
layers of 4 heads:

- `weights/NAME`, `grads/NAME`: each parameter under its Hugging Face name, and the gradient of `loss` for it. The
  embeddings and the head are `model.shared.weight`, which stands there once; `final_logits_bias` is no parameter there.
- `input_ids`, `attention_mask` [3, 16], `decoder_input_ids`, `decoder_attention_mask`, `labels` (-100 at the padding)
  [3, 12]: int32. Padding ends rows 1 and 2.
- `encoder_hidden_states` [3, 3, 16, 32], `decoder_hidden_states` [3, 3, 12, 32], first the embeddings and then each
  layer; `logits` [3, 12, 96]; `loss` [], the mean cross-entropy of all labels; `cross_attention` [2, 3, 4, 12, 16], of
  each layer. At the padding they mean nothing.
- `greedy` [3, 10]: what greedy decoding says, where nothing ends; `beams` [3, 10]: the same of a search with 4 beams.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SEED = 20170612
SOURCE_LENGTHS, TARGET_LENGTHS = (16, 11, 5), (12, 7, 9)
FIRST_WORD = 2
SAID = 10

CONFIG = transformers.MarianConfig(
    vocab_size=96,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=32,
    activation_function="swish",
    scale_embedding=True,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    pad_token_id=0,
    eos_token_id=1,
    forced_eos_token_id=None,
    decoder_start_token_id=0,
    init_std=0.2,
)


def build() -> transformers.MarianMTModel:
    """A model with no bias at 0 and no scale at 1."""
    torch.manual_seed(SEED)
    model = transformers.MarianMTModel._from_config(CONFIG, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "layer_norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.final_logits_bias.add_(0.2 * torch.randn_like(model.final_logits_bias))
    return model.eval()


def make_inputs() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(SEED)
    source = (len(SOURCE_LENGTHS), max(SOURCE_LENGTHS))
    target = (len(TARGET_LENGTHS), max(TARGET_LENGTHS))
    inputs = {name: np.zeros(source, np.int32) for name in ("input_ids", "attention_mask")}
    inputs |= {name: np.zeros(target, np.int32) for name in ("decoder_input_ids", "decoder_attention_mask")}
    inputs["labels"] = np.full(target, -100, np.int32)
    for row, (seen, told) in enumerate(zip(SOURCE_LENGTHS, TARGET_LENGTHS, strict=True)):
        inputs["input_ids"][row, :seen] = draw.integers(FIRST_WORD, CONFIG.vocab_size, seen)
        inputs["attention_mask"][row, :seen] = 1
        words = draw.integers(FIRST_WORD, CONFIG.vocab_size, told)
        inputs["labels"][row, :told] = words
        inputs["decoder_input_ids"][row, 1:told] = words[:-1]
        inputs["decoder_attention_mask"][row, :told] = 1
    return inputs


def compute(model: transformers.MarianMTModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output and gradient, in the model's own precision."""
    batch = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    model.zero_grad()
    output.loss.backward()
    arrays = {
        "encoder_hidden_states": torch.stack(output.encoder_hidden_states),
        "decoder_hidden_states": torch.stack(output.decoder_hidden_states),
        "cross_attention": torch.stack(output.cross_attentions),
        "logits": output.logits,
        "loss": output.loss,
    }
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        if parameter.grad is not None:  # the sinusoids have none
            arrays[f"grads/{name}"] = parameter.grad
    return {name: tensor.detach().numpy().copy() for name, tensor in arrays.items()}


def main() -> None:
    model, inputs = build(), make_inputs()
    weights = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    weights["final_logits_bias"] = model.final_logits_bias.numpy().copy()
    arrays = compute(model, inputs)
    with torch.no_grad():
        for name, beams in (("greedy", 1), ("beams", 4)):
            said = model.generate(
                torch.from_numpy(inputs["input_ids"]).long(),
                attention_mask=torch.from_numpy(inputs["attention_mask"]).long(),
                max_new_tokens=SAID,
                min_new_tokens=SAID,
                num_beams=beams,
                do_sample=False,
                length_penalty=0.0,
                bad_words_ids=[[0], [1]],
            )
            arrays[name] = said[:, 1:].numpy().astype(np.int32)
    exact = compute(model.double(), inputs)
    path = Path(__file__).with_name("marian.npz")
    named = {f"weights/{name}": array for name, array in weights.items()}
    np.savez_compressed(path, **named, **inputs, **arrays)

    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    print(
        f"{path.name}: {path.stat().st_size:,} bytes · {', '.join(name for name in weights if 'layers.1' not in name)}"
    )
    print("largest magnitude, and largest error against the same in float64:")
    for name in exact:
        real, ours = exact[name], arrays[name]
        print(f"  {name:65s} {str(ours.shape):18s} {np.abs(real).max():9.3g} {np.abs(real - ours).max():9.1e}")
    print(f"loss {float(arrays['loss']):.7f}")


if __name__ == "__main__":
    main()
