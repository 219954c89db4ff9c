"""MarianMT in Hugging Face's layout: transformers' MarianMTModel, as the OPUS-MT translation models have it."""

import json
from pathlib import Path

from data.tokenizer import SentencePiece, Tokenizer
from errors import UserError
from interop.family import Family

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
BLOCK = {
    "attention_norm": "self_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_norm": "final_layer_norm",
    **{f"attention/{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
}
CROSS = {
    "cross_norm": "encoder_attn_layer_norm",
    **{f"cross_attention/{ours}": f"encoder_attn.{theirs}" for ours, theirs in ATTENTION.items()},
}


def _open_tokenizers(folder: Path, field: str) -> tuple[Tokenizer, Tokenizer]:
    """Those of source and target: a SentencePiece model each, and one vocabulary that says what the pieces' ids are.

    Raises:
        UserError: a file is missing or broken.
    """
    try:
        ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        if not isinstance(ids, dict):
            raise ValueError("it holds no JSON object")
        pieces = sorted(ids, key=ids.__getitem__)
        models = [(folder / name).read_bytes() for name in ("source.spm", "target.spm")]
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError("its ids have gaps")
        source, target = (SentencePiece(model, str(folder), field, pieces) for model in models)
    except OSError as error:
        mend = "Download the whole folder: vocab.json, source.spm and target.spm."
        raise UserError(field, f"{error.filename} ({error.strerror})", mend) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(field, f"{folder / 'vocab.json'} ({error})", "Download it again.") from error
    except RuntimeError as error:  # of the library, on what is no model
        value = f"{folder}: source.spm or target.spm ({error})"
        raise UserError(field, value, "Download both again.") from error
    return source, target


MARIAN = Family(
    model_type="marian",
    name="transformer",
    fixed={
        "norm": "post",
        "position": "sinusoidal",
        "layer_scale": 0.0,
        "layer_norm_epsilon": 1e-5,
        "target_vocab_size": 0,
        "tied_head": True,
        "output_bias": True,
    },
    fields={
        "num_layers": ("encoder_layers", 12),
        "decoder_layers": ("decoder_layers", 12),
        "hidden_size": ("d_model", 1024),
        "num_heads": ("encoder_attention_heads", 16),
        "intermediate_size": ("encoder_ffn_dim", 4096),
        "activation": ("activation_function", "gelu"),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.0),
        "initializer_range": ("init_std", 0.02),
        "vocab_size": ("vocab_size", 58101),
        "max_positions": ("max_position_embeddings", 1024),
        "scale_embeddings": ("scale_embedding", False),
    },
    only={
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    },
    equal={"decoder_attention_heads": "num_heads", "decoder_ffn_dim": "intermediate_size"},
    backbone="model.",
    modules={
        "embeddings/word": "model.shared",
        **{f"encoder/layers/N/{ours}": f"model.encoder.layers.N.{theirs}" for ours, theirs in BLOCK.items()},
        **{f"decoder/layers/N/{ours}": f"model.decoder.layers.N.{theirs}" for ours, theirs in (BLOCK | CROSS).items()},
    },
    rows={"output_bias": ("final_logits_bias", 1)},
    ties={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
    computed=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
    classes={"seq2seq": "MarianMTModel"},
    pooled=frozenset(),
    tokenizer="MarianTokenizer",
    bare=("shared.", "encoder.", "decoder."),
    always=("seq2seq",),
    exported=False,
    open_tokenizers=_open_tokenizers,
)
