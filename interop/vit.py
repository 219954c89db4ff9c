"""ViT in Hugging Face's layout: transformers' ViTForImageClassification, and the backbone of its ViTModel."""

from interop.family import Family

VIT = Family(
    model_type="vit",
    name="vit",
    fixed={"norm": "pre", "position": "learned", "pool": "cls", "layer_scale": 0.0},
    fields={
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "intermediate_size": ("intermediate_size", 3072),
        "activation": ("hidden_act", "gelu"),
        "dropout": ("hidden_dropout_prob", 0.0),
        "attention_dropout": ("attention_probs_dropout_prob", 0.0),
        "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
        "initializer_range": ("initializer_range", 0.02),
        "image_size": ("image_size", 224),
        "patch_size": ("patch_size", 16),
        "channels": ("num_channels", 3),
    },
    only={"qkv_bias": True},
    equal={},
    backbone="vit.",
    modules={
        "embeddings/patch": "vit.embeddings.patch_embeddings.projection",
        "encoder/layers/N/attention_norm": "vit.encoder.layer.N.layernorm_before",
        "encoder/layers/N/attention/query": "vit.encoder.layer.N.attention.attention.query",
        "encoder/layers/N/attention/key": "vit.encoder.layer.N.attention.attention.key",
        "encoder/layers/N/attention/value": "vit.encoder.layer.N.attention.attention.value",
        "encoder/layers/N/attention/output": "vit.encoder.layer.N.attention.output.dense",
        "encoder/layers/N/mlp_norm": "vit.encoder.layer.N.layernorm_after",
        "encoder/layers/N/mlp/up": "vit.encoder.layer.N.intermediate.dense",
        "encoder/layers/N/mlp/down": "vit.encoder.layer.N.output.dense",
        "encoder/norm": "vit.layernorm",
        "classifier": "classifier",
    },
    rows={
        "embeddings/class_token": ("vit.embeddings.cls_token", 2),
        "embeddings/position/embedding": ("vit.embeddings.position_embeddings", 1),
    },
    unrolled=("embeddings/patch/kernel",),
    ties={},
    classes={"image_classification": "ViTForImageClassification"},
    pooled=frozenset(),
    bare=("embeddings.", "encoder.", "layernorm.", "pooler."),
    normalization=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
