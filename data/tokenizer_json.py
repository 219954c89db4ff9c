"""Tokenizers as transformers opens them: a tokenizer.json that gives the ids of ours, also of a SentencePiece model."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from data.tokenizer import CLS, SEP, SPECIALS, UNK, SentencePiece, Tokenizer, WordPiece, bert_template
from errors import UserError

PROTO: Any = sentencepiece_model_pb2  # generated code, of which the type checker knows nothing
SPACE = "▁"  # how SentencePiece writes a space
UNLIKELY = -1e4  # the score of a piece that no text is made of


def write_for_transformers(tokenizer: Tokenizer, folder: Path, *, generates: bool, max_length: int) -> None:
    """Writes what transformers' AutoTokenizer reads.

    Args:
        generates: for a model that goes on with a text: it begins with the end token, and does not end.
        max_length: the longest text in tokens that the tokenizer shall make.

    Raises:
        UserError: there is no tokenizer.json that gives the same ids.
    """
    opened = rebuild(tokenizer) if isinstance(tokenizer, SentencePiece) else tokenizer
    opened.save(folder)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    if generates:
        # GPT-2 would add an embedding for token types, and BertTokenizer an end behind the prompt.
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
        settings |= dict.fromkeys(("bos_token", "eos_token"), tokenizer.roles[SEP])
        (folder / "vocab.txt").unlink(missing_ok=True)
        if tokenizer.roles[CLS] == CLS:  # of the kind that is trained here; others have their own way
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            backend.post_processor = processors.TemplateProcessing(
                single=f"{SEP} $A", pair=f"{SEP} $A $B", special_tokens=[(SEP, tokenizer.sep_id)]
            )
            backend.save(str(folder / "tokenizer.json"))
    settings["model_max_length"] = max_length
    settings_path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def rebuild(tokenizer: SentencePiece) -> WordPiece:
    """The tokenizer.json of a SentencePiece model, unigram or BPE, that was trained here.

    One thing is told apart: a text that holds the name of a special or of a byte, in characters that are no pieces.

    Raises:
        UserError: the model does something that a tokenizer.json cannot say.
    """
    about = PROTO.ModelProto.FromString(tokenizer.model)
    if tokenizer.numbered or not set(SPECIALS) <= {piece.piece for piece in about.pieces}:
        value = "is a SentencePiece model from elsewhere, which has no tokenizer.json"
        raise UserError("config.data.tokenizer", value, "Export a model whose tokenizer was trained here.")
    kinds = PROTO.ModelProto.SentencePiece.Type
    # Specials and bytes are never what a text says: a text that holds "<0x41>" is spelled in other pieces.
    scores = {piece.piece: piece.score if piece.type == kinds.NORMAL else UNLIKELY for piece in about.pieces}
    if about.trainer_spec.model_type == PROTO.TrainerSpec.UNIGRAM:
        backend = tokenizers.Tokenizer(models.Unigram(list(scores.items()), tokenizer.unk_id, byte_fallback=True))
    else:
        ids = {piece: i for i, piece in enumerate(scores)}
        bpe = models.BPE(ids, _merges(scores), unk_token=UNK, fuse_unk=True, byte_fallback=True)
        backend = tokenizers.Tokenizer(bpe)
    steps: list[Any] = [normalizers.Precompiled(about.normalizer_spec.precompiled_charsmap)]
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    spelled = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(spelled)
    backend.add_special_tokens(list(SPECIALS))
    backend.post_processor = bert_template(tokenizer.cls_id, tokenizer.sep_id)
    return WordPiece(backend, "the SentencePiece model", "config.data.tokenizer")


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best piece first: what SentencePiece's BPE tries."""
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        if scores[piece] == UNLIKELY:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if scores.get(left, UNLIKELY) > UNLIKELY and scores.get(right, UNLIKELY) > UNLIKELY:
                merges.append((left, right))
    return merges
