"""Peer of `benchmarks.picture_step`: the same step of transformers' ViT or ResNet-18 on PyTorch.

    python benchmarks/peer_pictures.py [--experiment=vit] [--rows=64] [--size=32]

Optional: it needs torch and transformers, which this project neither installs nor uses. Pictures of noise, float32;
AdamW behind a clip at norm 1 for the ViT, SGD with momentum for the ResNet, whose stem is one 3 × 3 convolution. One
JSON object.
"""

import argparse
import json
import statistics
import time

import torch
import transformers


def make_vit(size: int) -> torch.nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            num_hidden_layers=6,
            hidden_size=192,
            num_attention_heads=3,
            intermediate_size=768,
            image_size=size,
            patch_size=4,
            num_labels=10,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def make_resnet(size: int) -> torch.nn.Module:
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=10
        )
    )
    embedder = model.resnet.embedder
    embedder.embedder.convolution = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    embedder.pooler = torch.nn.Identity()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="vit", choices=("vit", "resnet"))
    for name, default in {"rows": 64, "size": 32, "steps": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    torch.manual_seed(0)
    vit = flags.experiment == "vit"
    model = (make_vit if vit else make_resnet)(flags.size).train()
    if vit:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    seconds = []
    for _ in range(3 + flags.steps):
        pixels = torch.randn(flags.rows, 3, flags.size, flags.size)
        labels = torch.randint(0, 10, (flags.rows,))
        start = time.perf_counter()
        model(pixel_values=pixels, labels=labels).loss.backward()
        if vit:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[3:])
    middle = statistics.median(timed)
    result = {
        "step_ms": round(1e3 * middle, 1),
        "step_ms_quartiles": [round(1e3 * timed[len(timed) // 4], 1), round(1e3 * timed[3 * len(timed) // 4], 1)],
        "examples_per_second": round(flags.rows / middle, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"benchmark": "peer_pictures", **vars(flags), **result}))


if __name__ == "__main__":
    main()
