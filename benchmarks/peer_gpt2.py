"""Peer of `benchmarks.pretrain_step --experiment=gpt_lm`: the same step of transformers' GPT2LMHeadModel on PyTorch.

    python benchmarks/peer_gpt2.py [--size=4x256] [--rows=32] [--seq_len=128] [--vocab=8192] [--dropout=0.1]

Optional: it needs torch and transformers, which this project neither installs nor uses. Rows without padding of tokens
drawn by chance, float32, clip at norm 1 and AdamW; one JSON object.
"""

import argparse
import json
import statistics
import time

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="4x256", help="layers x width")
    for name, default in {"rows": 32, "seq_len": 128, "vocab": 8192, "steps": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    flags = parser.parse_args()
    layers, width = (int(number) for number in flags.size.split("x"))
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=max(1, width // 64),
            n_positions=flags.seq_len,
            vocab_size=flags.vocab,
            embd_pdrop=flags.dropout,
            resid_pdrop=flags.dropout,
            attn_pdrop=flags.dropout,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    seconds = []
    for _ in range(3 + flags.steps):
        tokens = torch.randint(0, flags.vocab, (flags.rows, flags.seq_len))
        start = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[3:])
    middle = statistics.median(timed)
    result = {
        "step_ms": round(1e3 * middle, 1),
        "step_ms_quartiles": [round(1e3 * timed[len(timed) // 4], 1), round(1e3 * timed[3 * len(timed) // 4], 1)],
        "tokens_per_second": round(flags.rows * flags.seq_len / middle),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"benchmark": "peer_gpt2", **vars(flags), **result}))


if __name__ == "__main__":
    main()
