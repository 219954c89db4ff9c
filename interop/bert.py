"""BERT in Hugging Face's layout: transformers' BertModel, BertForMaskedLM and BertForSequenceClassification."""

from typing import Any

from interop.family import Family

# Our field -> their option, and its value where config.json is silent.
FIELDS: dict[str, tuple[str, Any]] = {
    "num_layers": ("num_hidden_layers", 12),
    "hidden_size": ("hidden_size", 768),
    "num_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "activation": ("hidden_act", "gelu"),
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
    "initializer_range": ("initializer_range", 0.02),
    "vocab_size": ("vocab_size", 30522),
    "max_positions": ("max_position_embeddings", 512),
    "type_vocab_size": ("type_vocab_size", 2),
}

MODULES = {
    "embeddings/word": "bert.embeddings.word_embeddings",
    "embeddings/position": "bert.embeddings.position_embeddings",
    "embeddings/token_type": "bert.embeddings.token_type_embeddings",
    "embeddings/norm": "bert.embeddings.LayerNorm",
    "encoder/layers/N/attention/query": "bert.encoder.layer.N.attention.self.query",
    "encoder/layers/N/attention/key": "bert.encoder.layer.N.attention.self.key",
    "encoder/layers/N/attention/value": "bert.encoder.layer.N.attention.self.value",
    "encoder/layers/N/attention/output": "bert.encoder.layer.N.attention.output.dense",
    "encoder/layers/N/attention_norm": "bert.encoder.layer.N.attention.output.LayerNorm",
    "encoder/layers/N/mlp/up": "bert.encoder.layer.N.intermediate.dense",
    "encoder/layers/N/mlp/down": "bert.encoder.layer.N.output.dense",
    "encoder/layers/N/mlp_norm": "bert.encoder.layer.N.output.LayerNorm",
    "pooler": "bert.pooler.dense",
    "mlm_head": "cls.predictions",
    "mlm_head/transform": "cls.predictions.transform.dense",
    "mlm_head/norm": "cls.predictions.transform.LayerNorm",
    "classifier": "classifier",
}

BERT = Family(
    model_type="bert",
    name="bert",
    fixed={"norm": "post", "position": "learned", "layer_scale": 0.0},
    fields=FIELDS,
    only={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    equal={},
    backbone="bert.",
    modules=MODULES,
    ties={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    classes={"mlm": "BertForMaskedLM", "classification": "BertForSequenceClassification", "features": "BertModel"},
    pooled=frozenset({"classification", "features"}),
    tokenizer="BertTokenizer",
)
