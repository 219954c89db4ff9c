"""A variational autoencoder learns what pictures have in common (Kingma & Welling 2013, arXiv:1312.6114).

The loss is minus the evidence's lower bound (ELBO) of a picture, in nats: how surprising it is given its code, and how
far the code's distribution is from the prior.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from data import labels as labelled
from data.pipeline import Batch
from data.sources import Source
from errors import UserError
from tasks.pictures import PictureTask
from tasks.task import Log

DRAWS = 16  # codes of each picture that an evaluation takes the mean over
GRID = 15  # pictures along each side of the latent plane
REACH = 2.0  # deviations of the prior that the plane shows on each side
SHOWN = 16  # pictures whose reconstructions are drawn


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """The flags that predict.py takes for this task."""

    reconstructions: str = ""  # a folder for what each picture's code stands for
    batch_size: int = 32  # pictures that are computed together


class VariationalAutoencoding(PictureTask):
    """Knows no labels, but colours the codes' picture by them where there are any."""

    Options = EncodeOptions

    def __init__(self, config: Any, log: Log = print):
        super().__init__(config, log)
        self._labels: tuple[np.ndarray, tuple[str, ...]] | None = None  # of the last split that was opened

    @classmethod
    def create(cls, config: Any, log: Log, origin: Any = None) -> "VariationalAutoencoding":
        """For a new run: size and channels are those of the training pictures."""
        data = config.data
        if not data.beta > 0:
            raise UserError("config.data.beta", data.beta, "Give a number above 0; 1 is the ELBO's.")
        for name in ("mean", "std"):
            if data[name]:
                mend = "Leave it out: brightness from 0 to 1 is what is modelled."
                raise UserError(f"config.data.{name}", data[name], mend)
        cls.measure(config, log)
        channels = config.model.channels
        data.mean, data.std = (0.0,) * channels, (1.0,) * channels
        return cls(config, log)

    def targets(self, source: Source, records: np.ndarray) -> Batch:
        column = self.config.data.label
        self._labels = None
        if column in source[int(records[0])]:
            found = labelled.read_labels(source, column)
            names = labelled.label_order(found, (), 0)
            self._labels = labelled.one_of(found, names, source)[records], names
        return {}

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Sums over the batch: `loss` over the `weight` of its pictures; `reconstruction` and `kl`, its two parts."""
        images, config = self.normalized(batch["pixels"]), self.model_config
        posterior = model.encode(images)
        noise = jax.random.normal(key, (len(images), config.latent_size))
        return self._sums(batch, model.surprise(images, posterior.sample(noise)), posterior.kl().sum(-1))

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums, the mean over several codes of each picture; and the `means` of the codes, their `kl`, `index`.

        The draws depend on a picture's place among the rows alone, so that two evaluations agree.
        """
        images, config = self.normalized(batch["pixels"]), self.model_config
        posterior = model.encode(images)

        def draw(index: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (DRAWS, config.latent_size))

        noise = jax.vmap(draw, out_axes=1)(batch["index"])
        surprise = model.surprise(images, posterior.sample(noise)).mean(0)
        outputs = {"means": posterior.mean, "kl": posterior.kl(), "index": batch["index"]}
        return self._sums(batch, surprise, posterior.kl().sum(-1)), outputs

    def _sums(self, batch: Mapping[str, jax.Array], surprise: jax.Array, kl: jax.Array) -> dict[str, jax.Array]:
        present = batch["present"]
        return {
            "loss": ((surprise + self.config.data.beta * kl) * present).sum(),
            "weight": present.sum(),
            "examples": present.sum(),
            "reconstruction": (surprise * present).sum(),
            "kl": (kl * present).sum(),
        }

    def metrics(self, sums: Mapping[str, float], outputs: Any = None) -> dict[str, float]:
        """Means over the pictures: the loss; the lower bound on their log-likelihood; its two parts."""
        means = {name: sums[name] / max(sums["examples"], 1.0) for name in ("loss", "reconstruction", "kl")}
        return {"loss": means["loss"], "elbo": -means["reconstruction"] - means["kl"], **means}

    def metric_names(self) -> list[str]:
        return ["loss", "elbo", "reconstruction", "kl"]

    # ---- pictures

    def pictures(self, outputs: Mapping[str, np.ndarray], model: Any) -> dict[str, np.ndarray]:
        """Originals and reconstructions, samples of the prior, the plane of the two latent numbers that say the most,
        and where the codes lie on it.
        """
        from evaluation.pictures import picture_grid, points, render

        kept = outputs["index"] >= 0
        means, rows = outputs["means"][kept], outputs["index"][kept]
        latent = means.shape[1]
        most = np.argsort(-outputs["kl"][kept].mean(0), kind="stable")[:2]
        drawn = np.asarray(jax.random.normal(jax.random.key(0), (64, latent)))
        figures = {"samples": picture_grid(_bytes(model.show(drawn)), across=8)}
        if self.evaluated is not None:
            shown = self.evaluated[rows[:SHOWN]]
            pairs = np.concatenate([shown, _bytes(model.show(means[:SHOWN]))])
            figures["reconstructions"] = picture_grid(pairs, across=len(shown))
        if latent > 1:
            ticks = np.linspace(-REACH, REACH, GRID)
            plane = np.zeros((GRID, GRID, latent), np.float32)
            plane[..., most[0]], plane[..., most[1]] = ticks, ticks[::-1, None]
            figures["latent_plane"] = picture_grid(_bytes(model.show(plane.reshape(-1, latent))), across=GRID)
            labels = None if self._labels is None else (self._labels[0][rows], self._labels[1])
            figures["codes"] = points(means[:, most], labels, [f"latent {i}" for i in most])
        return {name: render(figure) for name, figure in figures.items()}

    # ---- predictions

    def predict(self, model: nnx.Module, lines: Iterator[str], options: EncodeOptions) -> Iterator[dict[str, Any]]:
        """For each line, the path of a picture, its `path`, the mean `code`, `elbo`, and `reconstruction`, a path."""

        @jax.jit
        def compute(model: Any, pixels: jax.Array) -> Any:
            batch = {"pixels": pixels, "index": jnp.zeros(len(pixels), jnp.int32), "present": jnp.ones(len(pixels))}
            images = self.normalized(batch["pixels"])
            posterior = model.encode(images)
            noise = jax.random.normal(jax.random.key(0), (DRAWS, 1, self.model_config.latent_size))
            surprise = model.surprise(images, posterior.sample(noise)).mean(0)
            return posterior.mean, -surprise - posterior.kl().sum(-1), model.show(posterior.mean)

        number = 0
        for paths, pixels in self.picture_batches(lines, options.batch_size):
            codes, bounds, shown = jax.device_get(compute(model, pixels))
            for i, path in enumerate(paths):
                result = {"path": path, "code": [round(float(x), 6) for x in codes[i]], "elbo": float(bounds[i])}
                if options.reconstructions:
                    number += 1
                    result["reconstruction"] = _save(_bytes(shown[i]), options.reconstructions, number)
                yield result

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        images = self.normalized(jnp.asarray(self.probe_pixels()))
        posterior = model.encode(images)
        return {"codes": np.asarray(posterior.mean), "pictures": np.asarray(model.show(posterior.mean))}


def _bytes(brightness: Any) -> np.ndarray:
    return np.rint(np.asarray(brightness) * 255).astype(np.uint8)


def _save(pixels: np.ndarray, folder: str, number: int) -> str:
    path = Path(folder) / f"{number:04}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    except OSError as error:
        mend = "Name a folder that can be written."
        raise UserError("--reconstructions", f"{folder} ({error.strerror})", mend) from error
    return str(path)
