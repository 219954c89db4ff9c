"""Tokenizers: WordPiece through `tokenizers`, unigram and BPE through SentencePiece; trained here, or loaded.

All of them have the specials [PAD] [UNK] [CLS] [SEP] [MASK]. Text is only ever text: a document that contains "[MASK]"
gives ordinary pieces, never the special one, unless `keep_mask` asks for it.
"""

import difflib
import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.cache import cached_folder, fingerprint
from data.sources import Source
from errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
KINDS = ("wordpiece", "unigram", "bpe")
VERSION = 1  # of the training: raise it when the same text gives other pieces
SMALLEST = {"wordpiece": 64, "unigram": 512, "bpe": 512}  # SentencePiece holds the 256 bytes as pieces


class Tokenizer:
    """What both libraries have in common. Ids are those of the vocabulary file, whatever their order there."""

    def __init__(self, ids: dict[str, int], vocab_size: int, content: bytes, name: str):
        missing = [special for special in SPECIALS if special not in ids]
        if missing:
            value = f"{name} has no {', '.join(missing)}"
            raise UserError("config.data.tokenizer", value, f"Give a tokenizer with {' '.join(SPECIALS)}.")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[special] for special in SPECIALS)
        self.special_ids = tuple(ids[special] for special in SPECIALS)
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint(content)

    def encode_batch(self, texts: Sequence[str], keep_mask: bool = False) -> list[np.ndarray]:
        """The ids of each text, int32, without [CLS] and [SEP].

        Args:
            keep_mask: "[MASK]" in a text becomes the special piece; else it is spelled out as any other text.
        """
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # a lone surrogate has no UTF-8
        if not keep_mask:
            return [np.asarray(ids, np.int32) for ids in self._encode_plain(texts)]
        parts = [text.split(MASK) for text in texts]
        encoded = iter(self._encode_plain([part for split in parts for part in split]))
        joined = []
        for split in parts:
            ids = list(next(encoded))
            for _ in split[1:]:
                ids += [self.mask_id, *next(encoded)]
            joined.append(np.asarray(ids, np.int32))
        return joined

    @functools.cached_property
    def continues_word(self) -> np.ndarray:
        """[vocab_size] Booleans: whether a piece goes on with the word of the piece before it."""
        flags = np.array([self._continues(self.token(i)) for i in range(self.vocab_size)])
        flags[list(self.special_ids)] = False
        return flags

    def token(self, id: int) -> str:
        """The piece as it stands in the vocabulary."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some pieces, without specials."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Writes the files that `load_tokenizer` reads."""
        raise NotImplementedError

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        raise NotImplementedError

    def _continues(self, piece: str) -> bool:
        raise NotImplementedError


class WordPiece(Tokenizer):
    """A tokenizer.json; what it says is the truth."""

    def __init__(self, backend: tokenizers.Tokenizer, name: str):
        backend.no_padding()
        backend.no_truncation()
        content = backend.to_str()
        self._prefix = json.loads(content)["model"].get("continuing_subword_prefix") or "##"
        super().__init__(backend.get_vocab(), backend.get_vocab_size(), content.encode(), name)
        self._content = content
        self._backend = backend
        self._backend.encode_special_tokens = True  # "[SEP]" in a text is five characters and a word

    def token(self, id: int) -> str:
        return self._backend.id_to_token(id) or UNK

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._content, encoding="utf-8")
        pieces = [self.token(i) for i in range(self.vocab_size)]
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        settings |= dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _continues(self, piece: str) -> bool:
        return piece.startswith(self._prefix)


class SentencePiece(Tokenizer):
    """A SentencePiece model, unigram or BPE."""

    def __init__(self, model: bytes, name: str):
        self._model = model
        self._backend = sentencepiece.SentencePieceProcessor()
        self._backend.LoadFromSerializedProto(model)
        size = self._backend.GetPieceSize()
        ids = {piece: self._backend.PieceToId(piece) for piece in SPECIALS}
        ids = {piece: id for piece, id in ids.items() if self._backend.IdToPiece(id) == piece}
        super().__init__(ids, size, model, name)

    def token(self, id: int) -> str:
        return self._backend.IdToPiece(int(id))

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.DecodeIds([int(id) for id in ids if id not in self.special_ids])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self._model)

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        return self._backend.EncodeAsIds(texts) if texts else []

    def _continues(self, piece: str) -> bool:
        return not piece.startswith("▁")


def make_tokenizer(spec: str, source: Source, log: Callable[[str], None] = print) -> Tokenizer:
    """A tokenizer trained on `source`, the training split, or loaded from a path.

    Args:
        spec: `wordpiece:N`, `unigram:N` or `bpe:N` with N pieces, or a file or folder to load.
        log: is told when the text is too small to give as many pieces.
    """
    kind, colon, number = spec.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1) if colon and not Path(spec).exists() else []
        if near:
            raise UserError("config.data.tokenizer", repr(spec), f"Did you mean {near[0]}:{number}?")
        return load_tokenizer(spec)
    if not number.isdecimal() or int(number) < SMALLEST[kind]:
        mend = f"Give the number of pieces, at least {SMALLEST[kind]}: {kind}:8192"
        raise UserError("config.data.tokenizer", repr(spec), mend)
    size = int(number)

    def build(folder: Path) -> None:
        log(f"tokenizer: training {spec} on {source.name}")
        texts = (source[i]["text"] for i in range(len(source)))
        (_train_wordpiece(texts, size) if kind == "wordpiece" else _train_sentencepiece(texts, kind, size)).save(folder)

    folder = cached_folder("tokenizers", fingerprint(VERSION, source.fingerprint, kind, size), build)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size < size:
        log(f"tokenizer: asked for {size:,} pieces, the text gave {tokenizer.vocab_size:,}")
    return tokenizer


def load_tokenizer(path: Path | str, field: str = "config.data.tokenizer") -> Tokenizer:
    """From tokenizer.json, vocab.txt or a SentencePiece .model, or a folder that holds one of them (in this order)."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        found += sorted(path.glob("*.model"))
        if not found:
            raise UserError(field, f"{path} holds no tokenizer", "Name a tokenizer.json, vocab.txt or .model.")
        path = found[0]
    if not path.is_file():
        mend = f"Give {', '.join(f'{kind}:N' for kind in KINDS)}, or the path of a tokenizer.json, vocab.txt or .model."
        raise UserError(field, f"no file {path}", mend)
    try:
        if path.suffix == ".model":
            return SentencePiece(path.read_bytes(), str(path))
        if path.suffix == ".txt":
            pieces = path.read_text(encoding="utf-8").splitlines()
            return WordPiece(_bert_backend({piece: i for i, piece in enumerate(pieces)}), str(path))
        return WordPiece(tokenizers.Tokenizer.from_file(str(path)), str(path))
    except UserError:
        raise
    except Exception as error:  # both libraries raise what they like on a file that is something else
        raise UserError(field, f"{path} is no tokenizer ({str(error).splitlines()[0][:100]})", "Name another.") from error


def _bert_backend(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """BERT's normalisation, words and template around a vocabulary (empty before training)."""
    model = models.WordPiece(vocabulary, unk_token=UNK) if vocabulary else models.WordPiece(unk_token=UNK)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    if vocabulary:
        _finish_bert(backend)
    return backend


def _finish_bert(backend: tokenizers.Tokenizer) -> None:
    """The parts that need ids."""
    present = [special for special in SPECIALS if backend.token_to_id(special) is not None]
    backend.add_special_tokens(present)
    if CLS in present and SEP in present:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}",
            pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
            special_tokens=[(piece, backend.token_to_id(piece)) for piece in (CLS, SEP)],
        )


def _train_wordpiece(texts: Iterator[str], size: int) -> Tokenizer:
    backend = _bert_backend({})
    # Rare characters may not eat the vocabulary: a word with one that is left out becomes [UNK].
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(SPECIALS), limit_alphabet=size // 2, show_progress=False
    )
    backend.train_from_iterator(_not_empty(texts), trainer)
    _finish_bert(backend)
    return WordPiece(backend, "the trained tokenizer")


def _train_sentencepiece(texts: Iterator[str], kind: str, size: int) -> Tokenizer:
    model = io.BytesIO()
    lines = (line for text in _not_empty(texts) for line in text.splitlines() if line.strip())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,  # a small text gives fewer pieces
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece=PAD,
        unk_piece=UNK,
        bos_piece=CLS,
        eos_piece=SEP,
        control_symbols=[MASK],  # a control piece, which no text can produce
        byte_fallback=True,  # a character without a piece is spelled in bytes: nothing is unknown
        character_coverage=0.9995,
        max_sentence_length=2**24,  # longer lines would be left out without a word
        num_threads=4,  # another number gives another model
        minloglevel=2,
    )
    return SentencePiece(model.getvalue(), "the trained tokenizer")


def _not_empty(texts: Iterator[str]) -> Iterator[str]:
    """The same texts; both trainers die of an empty corpus."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text.encode("utf-8", "replace").decode("utf-8")
    if empty:
        raise UserError("config.data.train", "holds no text to train a tokenizer on", "Name a source with text in it.")
