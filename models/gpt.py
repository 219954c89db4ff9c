"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): a pre-norm Transformer decoder.

Equal to transformers' GPT2LMHeadModel on the same weights; `norm`, `position` and `activation` are there for ablations.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from errors import UserError
from models.layers import Array, WordsAndPositions, dropout, split_key
from models.transformer import Cache, Stack, TransformerConfig, Watched, encoder_flops
from models.vocabulary import make_logits, vocabulary_cross_entropy


@dataclasses.dataclass(frozen=True)
class GptConfig(TransformerConfig):
    activation: str = "gelu_tanh"
    norm: str = "pre"
    layer_norm_epsilon: float = 1e-5
    vocab_size: int = 0  # rows of the word embedding; 0: the tokenizer's, rounded up to 64
    max_positions: int = 0  # rows of the position embedding; 0: config.data.seq_len

    @property
    def residual_stddev(self) -> float:
        """Smaller with the depth, so that the sum of all branches keeps its size."""
        return self.initializer_range * (2 * self.num_layers) ** -0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_positions"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"config.model.{name}", getattr(self, name), "Give a number above 0, or 0 to derive it."
                )


class GptForCausalLM(nnx.Module):
    """The decoder and its head, which is the word embedding: each place names the next token.

    A batch is a mapping of int32 arrays [batch, length]: `tokens`; `segment_ids`, 0 for padding and else the number of
    the packed text; `positions`, from 0 in each text. `dtype` is that of the computation; parameters are float32.
    """

    def __init__(self, config: GptConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        width, stddev = config.hidden_size, config.initializer_range
        self.embeddings = WordsAndPositions(
            config.vocab_size, width, config.position, config.max_positions, stddev=stddev, rngs=rngs
        )
        self.decoder = Stack(config, rngs, causal=True)

    def hidden_states(
        self, batch: Mapping[str, Array], key: Array | None = None, watched: Watched | None = None
    ) -> list[Array]:
        """The embeddings and the output of each layer: num_layers + 1 arrays [batch, length, hidden].

        Args:
            watched: the attention probabilities of each layer are added to it.
        """
        keys = split_key(key, 2)
        x = self.embeddings.summed(batch["tokens"], batch["positions"], self.dtype)
        x = dropout(x, self.config.dropout, keys[0])
        return self.decoder(x, batch["segment_ids"], batch["positions"], keys[1], watched=watched)

    def __call__(self, batch: Mapping[str, Array], size: int, key: Array | None = None) -> Array:
        """Logits [batch, length, vocab_size], float32, of the token behind each place.

        Args:
            size: how many of the `vocab_size` entries are words; the others are never likely.
        """
        return self.make_logits(size)(self.hidden_states(batch, key)[-1])

    def cross_entropy(
        self, batch: Mapping[str, Array], labels: Array, size: int, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Loss in nats, and whether the guess is right, of `labels` [batch, length], the tokens behind."""
        hidden = self.hidden_states(batch, key)[-1]
        return vocabulary_cross_entropy(hidden, self.embeddings.word.embedding[...], None, size, labels)

    def make_logits(self, size: int) -> Callable[[Array], Array]:
        """From hidden states [..., hidden] to logits [..., vocab_size]; to be made once for many steps."""
        return make_logits(self.embeddings.word.embedding[...], None, size, self.dtype)

    def advance(
        self, tokens: Array, positions: Array, visible: Array, caches: Sequence[Cache], slot: Array
    ) -> tuple[Array, list[Cache]]:
        """The hidden states of new tokens [batch, new] behind those in the caches, and the caches with them.

        Args:
            visible: which of the caches' places each of them sees, [batch, 1, new, slots].
            slot: the place of the first of them in the caches.
        """
        x = self.embeddings.summed(tokens, positions, self.dtype)
        return self.decoder.advance(x, visible, positions, caches, slot)

    @staticmethod
    def flops(config: GptConfig, length: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over one row."""
        return encoder_flops(config, length) + 2 * length * config.hidden_size * config.vocab_size
