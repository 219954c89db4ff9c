"""BERT (Devlin et al. 2018, arXiv:1810.04805): a post-norm Transformer encoder and its masked-language-model head.

Equal to transformers' BertModel, BertForMaskedLM and BertForSequenceClassification on the same weights; `norm` and
`position` are there for ablations.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.layers import ACTIVATIONS, Array, Embedding, LayerNorm, Linear, WordsAndPositions, dropout, split_key
from models.transformer import Stack, TransformerConfig, encoder_flops
from models.vocabulary import vocabulary_cross_entropy, vocabulary_logits


@dataclasses.dataclass(frozen=True)
class BertConfig(TransformerConfig):
    vocab_size: int = 0  # rows of the word embedding; 0: the tokenizer's, rounded up to 64
    max_positions: int = 0  # rows of the position embedding; 0: config.data.seq_len
    type_vocab_size: int = 2
    pooler: bool = False  # a dense tanh layer on [CLS], for heads that read a whole text
    num_labels: int = 0  # outputs of the classification head; 0: as many as the training labels need

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_positions", "num_labels"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"config.model.{name}", getattr(self, name), "Give a number above 0, or 0 to derive it."
                )
        if self.type_vocab_size < 1:
            raise UserError("config.model.type_vocab_size", self.type_vocab_size, "Give a number above 0.")


class BertEmbeddings(WordsAndPositions):
    """The sum of word, position and token-type embeddings, normalised."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        width, stddev = config.hidden_size, config.initializer_range
        super().__init__(config.vocab_size, width, config.position, config.max_positions, stddev=stddev, rngs=rngs)
        self.dropout = config.dropout
        self.token_type = Embedding(config.type_vocab_size, width, stddev=stddev, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=config.layer_norm_epsilon)

    def __call__(self, batch: Mapping[str, Array], dtype: jnp.dtype, key: Array | None = None) -> Array:
        x = self.summed(batch["tokens"], batch["positions"], dtype)
        if "token_types" in batch:
            x = x + self.token_type(batch["token_types"], dtype)
        else:  # one text a segment: all of type 0
            x = x + self.token_type.embedding[...][0].astype(dtype)
        return dropout(self.norm(x), self.dropout, key)


class Bert(nnx.Module):
    """The backbone. A batch is a mapping of int32 arrays [batch, length]:

    `tokens`; `segment_ids`, 0 for padding and else the number of the packed text; `positions`, from 0 in each text; and
    for pairs of texts `token_types`. `dtype` is that of the computation; parameters are float32.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embeddings = BertEmbeddings(config, rngs)
        self.encoder = Stack(config, rngs)
        width, stddev = config.hidden_size, config.initializer_range
        self.pooler = Linear(width, width, stddev=stddev, rngs=rngs) if config.pooler else None

    def hidden_states(
        self, batch: Mapping[str, Array], key: Array | None = None, places: Array | None = None
    ) -> list[Array]:
        """The embeddings and the output of each layer: num_layers + 1 arrays [batch, length, hidden].

        Args:
            places: [batch, asked]; the last array is then [batch, asked, hidden], of these places alone.
        """
        keys = split_key(key, 2)
        x = self.embeddings(batch, self.dtype, keys[0])
        return self.encoder(x, batch["segment_ids"], batch["positions"], keys[1], places)

    def pooled(self, first: Array) -> Array:
        """The pooled first tokens of texts, of their last hidden states; both [..., hidden]."""
        assert self.pooler is not None, "the config has pooler=False"
        # Rotary models go by RoFormer's head, whose activation is the layers' own.
        rotary = self.config.position == "rope"
        return (ACTIVATIONS[self.config.activation] if rotary else jnp.tanh)(self.pooler(first))


class BertForMaskedLM(Bert):
    """The backbone with the head that names masked tokens; its decoder is the word embedding with its own bias."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(config, rngs, dtype)
        self.mlm_head = MaskedLMHead(config, rngs)

    def __call__(self, batch: Mapping[str, Array], predict_positions: Array, size: int) -> Array:
        """Logits [batch, predictions, vocab_size], float32, at `predict_positions` [batch, predictions] alone.

        Args:
            size: how many of the `vocab_size` entries are words; the others are never likely.
        """
        return vocabulary_logits(*self._decoder(batch, predict_positions, None), size)

    def cross_entropy(
        self, batch: Mapping[str, Array], predict_positions: Array, labels: Array, size: int, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Loss in nats, and whether the guess is right, of `labels` [batch, predictions] at these positions."""
        return vocabulary_cross_entropy(*self._decoder(batch, predict_positions, key), size, labels)

    def _decoder(self, batch: Mapping[str, Array], positions: Array, key: Array | None) -> tuple[Array, Array, Array]:
        """What the vocabulary's layer takes: hidden [batch, predictions, hidden], the word embedding, the bias."""
        hidden = self.hidden_states(batch, key)[-1]
        chosen = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
        return self.mlm_head(chosen), self.embeddings.word.embedding[...], self.mlm_head.bias[...]

    @staticmethod
    def flops(config: BertConfig, length: int, predictions: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row."""
        head = config.hidden_size**2 + config.hidden_size * config.vocab_size
        return encoder_flops(config, length) + 2 * predictions * head


class MaskedLMHead(nnx.Module):
    """The transform before the decoder, and the decoder's bias."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.activation = config.activation
        stddev = config.initializer_range
        self.transform = Linear(config.hidden_size, config.hidden_size, stddev=stddev, rngs=rngs)
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_epsilon)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))

    def __call__(self, hidden: Array) -> Array:
        return self.norm(ACTIVATIONS[self.activation](self.transform(hidden)))


class BertForSequenceClassification(Bert):
    """The backbone with one linear map on the pooled first token of each text; a row may hold several texts."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(dataclasses.replace(config, pooler=True), rngs, dtype)
        self.classifier = Linear(config.hidden_size, config.num_labels, stddev=config.initializer_range, rngs=rngs)

    def __call__(self, batch: Mapping[str, Array], first_positions: Array, key: Array | None = None) -> Array:
        """Logits [batch, texts, num_labels], float32, of the texts that begin at `first_positions` [batch, texts]."""
        keys = split_key(key, 2)
        first = self.hidden_states(batch, keys[0], first_positions)[-1]
        return self.classifier(dropout(self.pooled(first), self.config.dropout, keys[1])).astype(jnp.float32)

    @staticmethod
    def flops(config: BertConfig, length: int, texts: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row."""
        head = config.hidden_size**2 + config.hidden_size * config.num_labels
        return encoder_flops(config, length, texts) + 2 * texts * head


class BertFeatures(Bert):
    """The backbone alone, for embeddings of texts."""
