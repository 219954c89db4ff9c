"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762): an encoder, and a decoder that looks at what it made.

Equal to transformers' MarianMTModel on the same weights; `norm` and `position` are there for ablations.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.layers import Array, Embedding, WordsAndPositions, dropout, split_key
from models.transformer import Cache, Memory, Stack, TransformerConfig, Watched, decoder_flops, encoder_flops
from models.vocabulary import make_logits, vocabulary_cross_entropy


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(TransformerConfig):
    activation: str = "relu"
    position: str = "sinusoidal"
    attention_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    decoder_layers: int = 0  # 0: as many as num_layers, which are the encoder's
    vocab_size: int = 0  # rows of the word embedding; 0: the tokenizer's, rounded up to 64
    target_vocab_size: int = 0  # the same of the target's; 0: source and target share tokenizer and embedding
    max_positions: int = 0  # rows of a position embedding; 0: config.data.seq_len
    tied_head: bool = True  # the target's word embedding names the next token
    scale_embeddings: bool = True  # by the root of hidden_size
    output_bias: bool = False  # a bias of the head

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_layers == 0:
            object.__setattr__(self, "decoder_layers", self.num_layers)
        for name in ("vocab_size", "target_vocab_size", "max_positions", "decoder_layers"):
            if getattr(self, name) < 0:
                mend = "Give a number above 0, or 0 to derive it."
                raise UserError(f"config.model.{name}", getattr(self, name), mend)


class Seq2SeqEmbeddings(WordsAndPositions):
    """Words and positions of one side or, where they share a vocabulary, of both."""

    def __init__(self, config: Seq2SeqConfig, entries: int, rngs: nnx.Rngs):
        width = config.hidden_size
        # Scaled up by the root of the width, words of this deviation come to a deviation of 1.
        stddev = width**-0.5 if config.scale_embeddings else config.initializer_range
        super().__init__(entries, width, config.position, config.max_positions, stddev=stddev, rngs=rngs)
        self.scale = math.sqrt(width) if config.scale_embeddings else 1.0
        self.dropout = config.dropout

    def __call__(self, tokens: Array, positions: Array, dtype: jnp.dtype, key: Array | None = None) -> Array:
        return dropout(self.summed(tokens, positions, dtype, self.scale), self.dropout, key)


class Seq2Seq(nnx.Module):
    """Encoder, decoder and the head that names the next token of the target.

    A batch is a mapping of int32 arrays [batch, source length] and [batch, target length]: `source_tokens`,
    `source_segment_ids`, `source_positions` and the same of the target. Segments are as in `models.bert`; a target sees
    the source of its own number, so several pairs can stand in a row.
    """

    def __init__(self, config: Seq2SeqConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embeddings = Seq2SeqEmbeddings(config, config.vocab_size, rngs)
        apart = config.target_vocab_size
        self.target_embeddings = Seq2SeqEmbeddings(config, apart, rngs) if apart else None
        self.encoder = Stack(config, rngs)
        self.decoder = Stack(decoder_config(config), rngs, causal=True, crosses=True)
        entries = apart or config.vocab_size
        stddev = config.initializer_range
        self.head = None if config.tied_head else Embedding(entries, config.hidden_size, stddev=stddev, rngs=rngs)
        self.output_bias = nnx.Param(jnp.zeros(entries, jnp.float32)) if config.output_bias else None

    def encode(self, batch: Mapping[str, Array], key: Array | None = None) -> list[Array]:
        """The source's embeddings and the output of each layer of the encoder, [batch, source length, hidden]."""
        keys = split_key(key, 2)
        positions = batch["source_positions"]
        x = self.embeddings(batch["source_tokens"], positions, self.dtype, keys[0])
        return self.encoder(x, batch["source_segment_ids"], positions, keys[1])

    def hidden_states(
        self, batch: Mapping[str, Array], key: Array | None = None, watched: Watched | None = None
    ) -> list[Array]:
        """The target's embeddings and the output of each layer of the decoder, [batch, target length, hidden].

        Args:
            watched: the attention probabilities of each of the decoder's layers are added to it.
        """
        keys = split_key(key, 3)
        memory = Memory(self.encode(batch, keys[0])[-1], batch["source_segment_ids"])
        positions = batch["target_positions"]
        x = self._of_target(batch["target_tokens"], positions, self.dtype, keys[1])
        return self.decoder(x, batch["target_segment_ids"], positions, keys[2], memory=memory, watched=watched)

    def __call__(self, batch: Mapping[str, Array], size: int, key: Array | None = None) -> Array:
        """Logits [batch, target length, entries], float32, of the token behind each place of the target.

        Args:
            size: how many of the entries are words; the others are never likely.
        """
        return self.make_logits(size)(self.hidden_states(batch, key)[-1])

    def cross_entropy(
        self, batch: Mapping[str, Array], labels: Array, size: int, key: Array | None = None, smoothing: float = 0.0
    ) -> tuple[Array, Array]:
        """Loss in nats, and whether the guess is right, of `labels` [batch, target length], the tokens behind."""
        hidden = self.hidden_states(batch, key)[-1]
        return vocabulary_cross_entropy(hidden, *self._head(), size, labels, smoothing)

    def make_logits(self, size: int) -> Callable[[Array], Array]:
        """From the decoder's hidden states [..., hidden] to logits [..., entries]; to be made once for many steps."""
        return make_logits(*self._head(), size, self.dtype)

    def remember(self, batch: Mapping[str, Array]) -> list[Cache]:
        """What the decoder looks at in the source, of each layer; computed once for a whole text."""
        return self.decoder.remember(self.encode(batch)[-1])

    def advance(
        self,
        tokens: Array,
        positions: Array,
        visible: Array,
        caches: Sequence[Cache],
        slot: Array,
        memories: Sequence[Cache],
        memory_visible: Array,
    ) -> tuple[Array, list[Cache]]:
        """The decoder's output for new tokens [batch, new] behind those in the caches, and the caches with them.

        Args:
            visible: which of the caches' places each of them sees, [batch, 1, new, slots].
            slot: the place of the first of them in the caches.
            memories: of `remember`; `memory_visible` [batch, 1, 1, source length] says which of it is no padding.
        """
        x = self._of_target(tokens, positions, self.dtype)
        return self.decoder.advance(x, visible, positions, caches, slot, memories, memory_visible)

    @property
    def logits_size(self) -> int:
        """How many entries the logits have."""
        return self.config.target_vocab_size or self.config.vocab_size

    @property
    def _of_target(self) -> Seq2SeqEmbeddings:
        return self.embeddings if self.target_embeddings is None else self.target_embeddings

    def _head(self) -> tuple[Array, Array | None]:
        table = self._of_target.word if self.head is None else self.head
        return table.embedding[...], None if self.output_bias is None else self.output_bias[...]

    @staticmethod
    def flops(config: Seq2SeqConfig, source_length: int, target_length: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row of pairs."""
        head = config.hidden_size * (config.target_vocab_size or config.vocab_size)
        decoder = decoder_flops(decoder_config(config), target_length, source_length)
        return encoder_flops(config, source_length) + decoder + 2 * target_length * head


def decoder_config(config: Seq2SeqConfig) -> Seq2SeqConfig:
    """The config of the decoder's stack: as the whole, with its own number of layers."""
    return dataclasses.replace(config, num_layers=config.decoder_layers)
