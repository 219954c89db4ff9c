"""The variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114) of pictures, with dense layers on both sides."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from errors import UserError
from models.layers import ACTIVATIONS, Array, Linear

LIKELIHOODS = ("bernoulli", "gaussian")


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    num_layers: int = 2  # hidden layers of the encoder, and of the decoder
    hidden_size: int = 256
    latent_size: int = 8
    activation: str = "relu"  # gelu | gelu_tanh | relu | silu
    likelihood: str = "bernoulli"  # of a pixel: bernoulli, its brightness a probability | gaussian, of learned variance
    image_size: int = 0  # the side of a picture; 0: the data's
    channels: int = 0  # of a picture; 0: the data's

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "latent_size"):
            if getattr(self, name) < 1:
                raise UserError(f"config.model.{name}", getattr(self, name), "Give a number above 0.")
        for name in ("image_size", "channels"):
            if getattr(self, name) < 0:
                mend = "Give a number above 0, or 0 to derive it."
                raise UserError(f"config.model.{name}", getattr(self, name), mend)
        for name, choices in (("activation", tuple(ACTIVATIONS)), ("likelihood", LIKELIHOODS)):
            if getattr(self, name) not in choices:
                raise UserError(f"config.model.{name}", repr(getattr(self, name)), f"Choose {', '.join(choices)}.")

    @property
    def pixels(self) -> int:
        """Numbers in a picture."""
        return self.image_size**2 * self.channels


class Posterior(NamedTuple):
    """What a picture's code may be: independent normal distributions, float32 [batch, latent]."""

    mean: Array
    log_variance: Array

    def sample(self, noise: Array) -> Array:
        """Codes by standard normal noise [..., batch, latent] (the reparameterization trick)."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Array:
        """The divergence from the prior in nats, of each latent number [batch, latent] (the paper's appendix B)."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.log_variance) - 1 - self.log_variance)


class Dense(nnx.Module):
    """Hidden layers, each with its activation."""

    def __init__(self, config: VaeConfig, inputs: int, rngs: nnx.Rngs):
        self.activation = config.activation
        sizes = [inputs] + [config.hidden_size] * config.num_layers
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([Linear(a, b, stddev=(2 / a) ** 0.5, rngs=rngs) for a, b in pairs])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = ACTIVATIONS[self.activation](layer(x))
        return x


class Encoder(Dense):
    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        super().__init__(config, config.pixels, rngs)
        width = config.hidden_size
        self.mean, self.log_variance = (
            Linear(width, config.latent_size, stddev=0.1 * width**-0.5, rngs=rngs) for _ in range(2)
        )


class Decoder(Dense):
    def __init__(self, config: VaeConfig, rngs: nnx.Rngs):
        super().__init__(config, config.latent_size, rngs)
        self.output = Linear(config.hidden_size, config.pixels, stddev=config.hidden_size**-0.5, rngs=rngs)
        learned = config.likelihood == "gaussian"
        self.log_variance = nnx.Param(jnp.full((), -2.0, jnp.float32)) if learned else None


class Vae(nnx.Module):
    """Pictures are floats [batch, image_size, image_size, channels] from 0 to 1; parameters and codes are float32."""

    def __init__(self, config: VaeConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.encoder, self.decoder = Encoder(config, rngs), Decoder(config, rngs)

    def encode(self, images: Array) -> Posterior:
        hidden = self.encoder(images.reshape(len(images), -1).astype(self.dtype))
        mean, log_variance = self.encoder.mean(hidden), self.encoder.log_variance(hidden)
        return Posterior(mean.astype(jnp.float32), log_variance.astype(jnp.float32))

    def decode(self, codes: Array) -> Array:
        """What codes [..., latent] stand for, float32 [..., pixels]: logits (bernoulli), or means (gaussian)."""
        return self.decoder.output(self.decoder(codes.astype(self.dtype))).astype(jnp.float32)

    def show(self, codes: Array) -> Array:
        """The mean pictures of codes [batch, latent], from 0 to 1: [batch, image_size, image_size, channels]."""
        said = self.decode(codes)
        brightness = jax.nn.sigmoid(said) if self.config.likelihood == "bernoulli" else jnp.clip(said, 0, 1)
        size = self.config.image_size
        return brightness.reshape(-1, size, size, self.config.channels)

    def surprise(self, images: Array, codes: Array) -> Array:
        """Minus the log-likelihood of pictures given codes [..., batch, latent], in nats: float32 [..., batch]."""
        said, x = self.decode(codes), images.reshape(len(images), -1).astype(jnp.float32)
        if self.decoder.log_variance is None:
            return (jax.nn.softplus(said) - x * said).sum(-1)
        log_variance = self.decoder.log_variance[...]
        errors = jnp.square(x - said) * jnp.exp(-log_variance)
        return 0.5 * (errors + log_variance + np.log(2 * np.pi)).sum(-1)

    @staticmethod
    def flops(config: VaeConfig) -> int:
        """Floating-point operations of the matrix products of one forward pass over one picture."""
        width = config.hidden_size
        inside = 2 * (config.num_layers - 1) * width**2
        return 2 * (2 * config.pixels * width + inside + 3 * config.latent_size * width)
