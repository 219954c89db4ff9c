"""RoFormer (Su et al. 2021, arXiv:2104.09864) in Hugging Face's layout: our BERT with rotary positions.

It turns the pairs (0, 1), (2, 3) … of a head's dimensions by the angles by which ours turns (0, d/2), (1, d/2 + 1) …,
so the outputs of queries and keys change places on the way. Its classification head has the pooler inside.
"""

from interop.bert import BERT, FIELDS, MODULES
from interop.family import Family


def _renamed(name: str) -> str:
    return name.replace("bert.", "roformer.", 1) if name.startswith("bert.") else name


ROFORMER = Family(
    model_type="roformer",
    name="bert",
    fixed={"norm": "post", "position": "rope", "layer_scale": 0.0},
    fields={**FIELDS, "vocab_size": ("vocab_size", 50000), "max_positions": ("max_position_embeddings", 1536)},
    only={"rotary_value": False, "is_decoder": False, "add_cross_attention": False},
    equal={"embedding_size": "hidden_size"},
    backbone="roformer.",
    modules={
        **{ours: _renamed(theirs) for ours, theirs in MODULES.items() if ours != "embeddings/position"},
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
    },
    ties={alias: _renamed(name) for alias, name in BERT.ties.items()},
    classes={
        "mlm": "RoFormerForMaskedLM",
        "classification": "RoFormerForSequenceClassification",
        "features": "RoFormerModel",
    },
    pooled=frozenset({"classification"}),
    tokenizer="RoFormerTokenizer",
    interleaved=True,
    position_table="roformer.encoder.embed_positions.weight",
)
