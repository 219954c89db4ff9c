"""Tokenizers: WordPiece through `tokenizers`, unigram and BPE through SentencePiece; trained here, or loaded.

All of them have the specials [PAD] [UNK] [CLS] [SEP] [MASK]. Text is only ever text: a document that contains "[MASK]"
gives ordinary pieces, never the special one, unless `keep_mask` asks for it.
"""

import abc
import difflib
import functools
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.cache import cached_folder, fingerprint
from data.sources import Source
from errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# What foreign vocabularies call them; GPT-2 has one for all, and no mask. The first that is there has the role.
FOREIGN = {PAD: ("<pad>", "<|endoftext|>"), UNK: ("<unk>", "<|endoftext|>"), CLS: ("<s>", "<pad>", "<|endoftext|>")}
FOREIGN |= {SEP: ("</s>", "<|endoftext|>"), MASK: ("<mask>",)}
FIELD = "config.data.tokenizer"
KINDS = ("wordpiece", "unigram", "bpe")
PIECES = "pieces.json"  # beside a SentencePiece model whose pieces have other ids than its own
CHARACTERS = "char"  # the kind without a number of pieces
VERSION = 2  # of the training: raise it when the same text gives other pieces
SMALLEST = {"wordpiece": 64, "unigram": 512, "bpe": 512}  # SentencePiece holds the 256 bytes as pieces
MOST_IDS = 2**22  # an embedding has a row for each id, also for those that no piece has
PROBE = "a b [MASK]\n我 \U0010fffd"  # known and unknown: what is wrong with a tokenizer may show at the first text
COVERAGE = 0.9999  # of WordPiece's training text: of many characters the rarest stay out of the vocabulary
IDEOGRAPH = re.compile("[\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Tokenizer(abc.ABC):
    """What both libraries have in common. Ids are those of the vocabulary file, whatever their order there."""

    def __init__(self, pieces: list[str], more_special: Iterable[int], content: bytes, name: str, field: str):
        ids = {piece: i for i, piece in enumerate(pieces)}
        roles = {role: next((p for p in (role, *FOREIGN[role]) if p in ids), None) for role in SPECIALS}
        own = PAD in ids or MASK in ids  # of the kind that is trained here: it must have them all
        missing = [role for role, piece in roles.items() if piece is None and (own or role != MASK)]
        if missing:
            value = f"{name} has no {', '.join(missing)}"
            raise UserError(field, value, f"Give a tokenizer with {' '.join(SPECIALS)}.")
        self.roles = {role: piece for role, piece in roles.items() if piece is not None}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            ids[self.roles[role]] if role in self.roles else -1 for role in SPECIALS
        )
        self.special_ids = tuple(sorted({*(ids[piece] for piece in self.roles.values()), *more_special}))
        self.vocab_size = len(pieces)
        self.fingerprint = fingerprint(content)
        self.vocabulary_hash = fingerprint(*pieces)  # what a model's embedding rows mean
        self._pieces = pieces
        self._is_special = np.isin(np.arange(len(pieces)), self.special_ids)
        if self._is_special.all():
            raise UserError(field, f"{name} has specials alone", "Give a tokenizer with pieces of text.")

    def encode_batch(self, texts: Sequence[str], keep_mask: bool = False) -> list[np.ndarray]:
        """The ids of each text, int32, without [CLS] and [SEP].

        Args:
            keep_mask: "[MASK]" in a text becomes the special piece; else it is spelled out as any other text.
        """
        texts = [_clean(text) for text in texts]
        if not keep_mask:
            return self._encode_text(texts)
        parts = [text.split(MASK) for text in texts]
        encoded = iter(self._encode_text([part for split in parts for part in split]))
        joined = []
        for split in parts:
            arrays = [next(encoded)]
            for part in split[1:]:
                ids = next(encoded)
                arrays += [np.array([self.mask_id], np.int32), ids if part[:1].isspace() else self._continue(ids)]
            joined.append(np.concatenate(arrays))
        return joined

    def _encode_text(self, texts: list[str]) -> list[np.ndarray]:
        """Ids that are never special, whatever a foreign vocabulary makes of a text; [UNK] alone may occur."""
        arrays = [np.array(ids, np.int32) for ids in self._encode_plain(texts)]
        return [np.where(self._is_special[ids], np.int32(self.unk_id), ids) for ids in arrays]

    @functools.cached_property
    def continues_word(self) -> np.ndarray:
        """[vocab_size] Booleans: whether a piece goes on with the word of the piece before it."""
        return np.array([self._continues(piece) for piece in self._pieces]) & ~self._is_special

    def token(self, id: int) -> str:
        """The piece as it stands in the vocabulary."""
        return self._pieces[id]

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some pieces; of the specials, only [UNK] leaves a trace."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the files that `load_tokenizer` reads."""

    def _ordinary(self, ids: Iterable[int]) -> list[int]:
        return [int(id) for id in ids if id == self.unk_id or not self._is_special[id]]

    @abc.abstractmethod
    def _encode_plain(self, texts: list[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _continues(self, piece: str) -> bool: ...

    def _continue(self, ids: np.ndarray) -> np.ndarray:
        """The ids of a text that follows a [MASK] without a space."""
        return ids


class WordPiece(Tokenizer):
    """A tokenizer.json; what it says is the truth."""

    def __init__(self, backend: tokenizers.Tokenizer, name: str, field: str):
        backend.no_padding()
        backend.no_truncation()  # many files from the Hub cut at 512
        self._content = backend.to_str(pretty=True)
        self._about = json.loads(self._content)
        ids = backend.get_vocab()
        if max(ids.values(), default=-1) >= MOST_IDS:
            raise ValueError(f"a piece has the id {max(ids.values())}")
        pieces = [""] * (max(ids.values(), default=-1) + 1)
        for piece, id in ids.items():
            pieces[id] = piece
        added = {entry["id"] for entry in self._about["added_tokens"] if entry["special"]}
        holes = {i for i, piece in enumerate(pieces) if not piece}
        super().__init__(pieces, added | holes, self._content.encode(), name, field)
        backend.encode_special_tokens = True  # "[SEP]" in a text is a word between two brackets
        self._backend = backend

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode(self._ordinary(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._content, encoding="utf-8")
        settings: dict[str, Any] = {f"{role[1:-1].lower()}_token": piece for role, piece in self.roles.items()}
        normalizer = self._about["normalizer"] or {}
        settings["do_lower_case"] = normalizer.get("lowercase", False)
        settings["strip_accents"] = normalizer.get("strip_accents")
        settings["tokenize_chinese_chars"] = normalizer.get("handle_chinese_chars", False)
        if self._is_berts(settings):
            settings["tokenizer_class"] = "BertTokenizer"
            vocabulary = "".join(f"{piece}\n" for piece in self._pieces)
            (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
        else:
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            settings |= {"bos_token": self.roles[CLS], "eos_token": self.roles[SEP]}
            settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # it leaves types out
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _is_berts(self, settings: Mapping[str, Any]) -> bool:
        """Whether vocabulary and settings say all: transformers' BertTokenizer reads no more of a tokenizer.json."""
        if self._about["model"]["type"] != "WordPiece":
            return False
        rebuilt = json.loads(_bert_backend(self._pieces, settings).to_str())
        parts = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        return all(rebuilt[part] == self._about[part] for part in parts)

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _continues(self, piece: str) -> bool:
        if self._about["model"]["type"] == "WordPiece":
            return piece.startswith(self._about["model"]["continuing_subword_prefix"])
        return not piece.startswith(("▁", "Ġ"))  # how SentencePiece and byte-level BPE write the space before a word


class SentencePiece(Tokenizer):
    """A SentencePiece model, unigram or BPE.

    Args:
        pieces: all pieces by id, where these are others than the model's own; what is not among them is unknown.
    """

    def __init__(self, model: bytes, name: str, field: str, pieces: list[str] | None = None):
        self.model, self.numbered = model, pieces is not None
        self._backend = sentencepiece.SentencePieceProcessor()
        self._backend.LoadFromSerializedProto(model)
        numbers = range(self._backend.GetPieceSize())
        control = [i for i in numbers if self._backend.IsControl(i) or self._backend.IsUnused(i)]
        own = [self._backend.IdToPiece(i) for i in numbers]
        if pieces is None:
            super().__init__(own, control, model, name, field)
            return
        super().__init__(pieces, [], model + json.dumps(pieces).encode(), name, field)
        ids = {piece: i for i, piece in enumerate(pieces)}
        self._ids = np.array([ids.get(piece, self.unk_id) for piece in own], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        if self.numbered:
            return self._backend.DecodePieces([self._pieces[id] for id in self._ordinary(ids)])
        return self._backend.DecodeIds(self._ordinary(ids))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)
        if self.numbered:
            (folder / PIECES).write_text(json.dumps(self._pieces, ensure_ascii=False), encoding="utf-8")

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        encoded = self._backend.EncodeAsIds(texts) if texts else []
        return [self._ids[ids].tolist() for ids in encoded] if self.numbered else encoded

    def _continues(self, piece: str) -> bool:
        return not piece.startswith("▁") and not IDEOGRAPH.match(piece)  # Chinese sets no spaces between its words

    def _continue(self, ids: np.ndarray) -> np.ndarray:
        # SentencePiece sets a space before each text; take it away again, where the piece without it exists.
        bare = self._pieces[ids[0]].removeprefix("▁") if len(ids) else ""
        known = self._backend.PieceToId(bare) if bare else self.unk_id
        if len(ids) and not bare:
            return ids[1:]
        return ids if known == self.unk_id else np.concatenate([np.array([known], np.int32), ids[1:]])


def make_tokenizer(spec: str, source: Source, log: Callable[[str], None] = print, field: str = FIELD) -> Tokenizer:
    """A tokenizer trained on `source`, the training split, or loaded from a path.

    Args:
        spec: `wordpiece:N`, `unigram:N` or `bpe:N` with N pieces, `char` for single characters, or a file or folder to
            load.
        log: is told when the text is too small to give as many pieces.
        field: the name of the config field, for messages.
    """
    kind, colon, number = spec.partition(":")
    if spec == CHARACTERS:
        return load_tokenizer(
            cached_folder(
                "tokenizers",
                fingerprint(VERSION, source.fingerprint, spec),
                lambda folder: _collect_characters(source).save(folder),
            )
        )
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1) if colon and not os.path.exists(spec) else []
        if near:
            raise UserError(field, repr(spec), f"Did you mean {near[0]}:{number}?")
        return load_tokenizer(spec, field)
    if not number.isdecimal() or int(number) < SMALLEST[kind]:
        mend = f"Give the number of pieces, at least {SMALLEST[kind]}: {kind}:8192"
        raise UserError(field, repr(spec), mend)
    size = int(number)

    def build(folder: Path) -> None:
        log(f"tokenizer: training {spec} on {source.name}")
        tokenizer = (
            _train_wordpiece(source, size) if kind == "wordpiece" else _train_sentencepiece(source, kind, size, field)
        )
        tokenizer.save(folder)

    folder = cached_folder("tokenizers", fingerprint(VERSION, source.fingerprint, kind, size), build)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size < size:
        log(f"tokenizer: asked for {size:,} pieces, the text gave {tokenizer.vocab_size:,}")
    return tokenizer


def load_tokenizer(path: Path | str, field: str = FIELD) -> Tokenizer:
    """From tokenizer.json, vocab.txt or a SentencePiece .model, or a folder that holds one of them (in this order)."""
    path = Path(path)
    if os.path.isdir(path):
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        found += sorted(path.glob("*.model"))
        if not found:
            raise UserError(field, f"{path} holds no tokenizer", "Name a tokenizer.json, vocab.txt or .model.")
        path = found[0]
    if not os.path.isfile(path):  # unlike Path.is_file, also of a name that is too long for one
        trained = ", ".join([*(f"{kind}:N" for kind in KINDS), CHARACTERS])
        mend = f"Give {trained}, or the path of a tokenizer.json, vocab.txt or .model."
        raise UserError(field, f"no file {path}", mend)
    try:
        tokenizer = _read(path, field)
        tokenizer.decode(tokenizer.encode_batch([PROBE])[0])
    except UserError:
        raise
    except BaseException as error:  # both libraries raise what they like on a file that is something else
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, which is none
            raise
        mend = "Give a tokenizer.json, vocab.txt or SentencePiece .model."
        raise UserError(field, f"{path} is no tokenizer ({str(error)[:100]})", mend) from error
    return tokenizer


def _read(path: Path, field: str) -> Tokenizer:
    """What the file's name says that it is; raises anything for another file."""
    if path.suffix == ".model":
        numbered = path.with_name(PIECES)
        pieces = json.loads(numbered.read_text(encoding="utf-8")) if numbered.is_file() else None
        if pieces is not None and not (isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces)):
            raise ValueError(f"{PIECES} is no list of pieces")
        return SentencePiece(path.read_bytes(), str(path), field, pieces)
    if path.suffix == ".txt":
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return WordPiece(_bert_backend(pieces, _settings(path)), str(path), field)
    return WordPiece(tokenizers.Tokenizer.from_file(str(path)), str(path), field)


def _settings(path: Path) -> dict[str, Any]:
    """What transformers' tokenizer_config.json beside a vocab.txt says of it; empty without."""
    path = path.with_name("tokenizer_config.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _bert_backend(pieces: list[str], settings: Mapping[str, Any] | None = None) -> tokenizers.Tokenizer:
    """BERT's normalisation, words and template around a vocabulary.

    Args:
        settings: `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` as transformers' BertTokenizer has them.
    """
    settings = settings or {}
    lowercase = settings.get("do_lower_case")
    if lowercase is None:  # a vocabulary that lowers all text could not use a capital letter
        lowercase = not any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    ids = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNK, continuing_subword_prefix="##"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    if all(special in ids for special in SPECIALS):
        backend.add_special_tokens(list(SPECIALS))
        backend.post_processor = bert_template(ids[CLS], ids[SEP])
    return backend


def bert_template(cls_id: int, sep_id: int) -> processors.TemplateProcessing:
    """[CLS] text [SEP], or [CLS] text [SEP] text [SEP]."""
    return processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, cls_id), (SEP, sep_id)],
    )


def _train_wordpiece(source: Source, size: int) -> Tokenizer:
    alphabet = _alphabet(source, size // 32, size // 4)  # a character may take two pieces: `a` and `##a`

    def train(size: int, first: list[str]) -> list[str]:
        backend = _bert_backend([])
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=first,
            min_frequency=2,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator(_texts(source), trainer, length=len(source))
        ids = backend.get_vocab()
        return sorted(ids, key=lambda piece: ids[piece])

    # The library numbers single characters in an order of chance, and breaks ties between merges by these numbers.
    # So a first training finds the characters only, and the second is given them sorted.
    characters = sorted(set(train(0, list(SPECIALS))) - set(SPECIALS))
    pieces = train(size, [*SPECIALS, *characters])
    return WordPiece(_bert_backend(pieces), "the trained tokenizer", FIELD)


def _alphabet(source: Source, least: int, most: int) -> list[str]:
    """The commonest characters of the text after BERT's normalisation: `COVERAGE` of it, within `least` and `most`."""
    normalize = normalizers.BertNormalizer().normalize_str
    counts: Counter[str] = Counter()
    for text in _texts(source):
        counts.update(normalize(text))
    found = sorted(((count, char) for char, count in counts.items() if not char.isspace()), key=lambda x: (-x[0], x[1]))
    if not found:
        raise _empty(source)
    covered = np.cumsum([count for count, _ in found])
    enough = int(np.searchsorted(covered, COVERAGE * covered[-1])) + 1
    return [char for _, char in found[: min(max(enough, least), most)]]


def _collect_characters(source: Source) -> Tokenizer:
    """Every character of the text is a piece, line breaks and spaces among them."""
    characters = sorted({character for text in _texts(source) for character in text})
    if not characters:
        raise _empty(source)
    ids = {piece: i for i, piece in enumerate([*SPECIALS, *characters])}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(SPECIALS))
    return WordPiece(backend, "the characters", FIELD)


def _train_sentencepiece(source: Source, kind: str, size: int, field: str) -> Tokenizer:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(source),
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
            num_threads=4,  # another number gives another model
            minloglevel=2,
        )
    except RuntimeError as error:
        if too_small := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            mend = f"The characters of {source.name} alone need {too_small[1]} pieces: give more."
            raise UserError(field, f"{kind}:{size}", mend) from error
        if "sentences_.empty" in str(error) or "all_chars_count" in str(error):
            raise _empty(source) from error
        raise
    return SentencePiece(model.getvalue(), "the trained tokenizer", field)


def _lines(source: Source) -> Iterator[str]:
    """Lines as SentencePiece takes them: long ones and those with its own mark U+2585 it would leave out."""
    for text in _texts(source):
        for line in text.replace("\u2585", " ").splitlines():
            yield from (line[i : i + 1000] for i in range(0, len(line), 1000))


def _texts(source: Source) -> Iterator[str]:
    return (_clean(source[i]["text"]) for i in range(len(source)))


def _clean(text: str) -> str:
    """Without lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _empty(source: Source) -> UserError:
    return UserError(source.name, "holds no text to train a tokenizer on", "Name a source with text in it.")
