"""ResNet in Hugging Face's layout: transformers' ResNetForImageClassification, and the backbone of its ResNetModel."""

from interop.family import Family

LAYER = "resnet.encoder.stages.N.layers.N"

RESNET = Family(
    model_type="resnet",
    name="resnet",
    fixed={"stem": "7x7"},
    fields={
        "depths": ("depths", (3, 4, 6, 3)),
        "widths": ("hidden_sizes", (256, 512, 1024, 2048)),
        "stem_width": ("embedding_size", 64),
        "block": ("layer_type", "bottleneck"),
        "activation": ("hidden_act", "relu"),
        "downsample_in_bottleneck": ("downsample_in_bottleneck", False),
        "channels": ("num_channels", 3),
    },
    only={"downsample_in_first_stage": False},
    equal={},
    backbone="resnet.",
    modules={
        "embeddings/convolution": "resnet.embedder.embedder.convolution",
        "embeddings/norm": "resnet.embedder.embedder.normalization",
        "encoder/stages/N/layers/N/convolutions/N": f"{LAYER}.layer.N.convolution",
        "encoder/stages/N/layers/N/norms/N": f"{LAYER}.layer.N.normalization",
        "encoder/stages/N/layers/N/shortcut/convolution": f"{LAYER}.shortcut.convolution",
        "encoder/stages/N/layers/N/shortcut/norm": f"{LAYER}.shortcut.normalization",
        "classifier": "classifier.1",
    },
    ties={},
    classes={"image_classification": "ResNetForImageClassification"},
    pooled=frozenset(),
    stack="encoder/stages/N/layers/N/convolutions/0/kernel",
    bare=("embedder.", "encoder."),
    normalization=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
)
