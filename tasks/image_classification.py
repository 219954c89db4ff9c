"""A label for each picture (Dosovitskiy et al. 2020, arXiv:2010.11929; He et al. 2015, arXiv:1512.03385).

Pictures may be mixed within the step: mixup (Zhang et al. 2017, arXiv:1710.09412) adds two up, cutmix (Yun et al. 2019,
arXiv:1905.04899) puts a piece of one into the other; the loss is divided between their labels alike.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data import labels as labelled
from data.pipeline import Batch
from data.sources import Source
from errors import UserError
from models.vit import resize_positions
from tasks.pictures import PictureTask
from tasks.problems import Multiclass
from tasks.task import Log

HEAD = "classifier/"
POSITIONS = "embeddings/position/embedding"
MISTAKES = 25  # that are drawn


@dataclasses.dataclass(frozen=True)
class LabelPictureOptions:
    """The flags that predict.py takes for this task."""

    features: bool = False  # what the head reads of each picture instead
    batch_size: int = 32  # pictures that are computed together


class ImageClassification(PictureTask):
    """Owns the labels; their order is saved in the config as `data.labels`."""

    Options = LabelPictureOptions

    def __init__(self, config: Any, log: Log = print):
        super().__init__(config, log)
        self.problem = Multiclass(config.data)
        self.class_weights = np.ones(config.model.num_labels, np.float32)

    @classmethod
    def create(cls, config: Any, log: Log, origin: Any = None) -> "ImageClassification":
        """For a new run: size, channels and labels are those of the training pictures."""
        cls.check(config)
        data, model = config.data, config.model
        if origin and not data.mean and not data.std:
            data.mean, data.std = origin.normalization
        train = cls.measure(config, log)
        inherited = origin.labels if origin else ()
        model.num_labels = Multiclass(data).resolve(train, model.num_labels, inherited)
        if origin:
            if inherited != data.labels and origin.drop(HEAD):
                log(f"init_from: the classifier of {origin.name} is for other labels, and begins anew")
            _fit_positions(origin, model, log)
        task = cls(config, log)
        if data.class_weights:
            task.class_weights = task.problem.class_weights(task.problem.targets(train))
        return task

    @staticmethod
    def check(config: Any) -> None:
        data = config.data
        if not 0 <= data.label_smoothing < 1:
            raise UserError("config.data.label_smoothing", data.label_smoothing, "Give a share from 0 to below 1.")
        for name in ("mixup", "cutmix"):
            if not data[name] >= 0:
                raise UserError(f"config.data.{name}", data[name], "Give a number such as 0.2 or 1.0, or 0 for none.")
        if not all(isinstance(label, str) for label in data.labels):
            raise UserError("config.data.labels", data.labels, "Give texts: \"('cat','dog')\".")

    def targets(self, source: Source, records: np.ndarray) -> Batch:
        found = labelled.read_labels(source, self.config.data.label)
        return {"targets": labelled.one_of(found, self.config.data.labels, source)[records]}

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> dict[str, jax.Array]:
        """Sums over the batch: `loss` over the `weight` of its pictures; `examples`, `hits`."""
        images, data, mixed = self.normalized(batch["pixels"]), self.config.data, None
        if key is not None and (data.mixup or data.cutmix):
            images, *mixed = mix(images, data.mixup, data.cutmix, jax.random.fold_in(key, 0))
        logits = model(images, None if key is None else jax.random.fold_in(key, 1))
        return self._sums(logits, batch, self.class_weights, data.label_smoothing, mixed)

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums, the loss without smoothing or class weights; and `scores`, `targets`, `index` of each picture."""
        logits = model(self.normalized(batch["pixels"]))
        outputs = {"scores": self.problem.scores(logits), "targets": batch["targets"], "index": batch["index"]}
        return self._sums(logits, batch, np.ones_like(self.class_weights), 0.0), outputs

    def _sums(
        self,
        logits: jax.Array,
        batch: Mapping[str, jax.Array],
        class_weights: np.ndarray,
        smoothing: float,
        mixed: Sequence[jax.Array] | None = None,
    ) -> dict[str, jax.Array]:
        present, targets = batch["present"], batch["targets"]
        losses, weights = self.problem.losses(logits, targets, class_weights, smoothing)
        if mixed:
            partner, share = mixed
            others, their_weights = self.problem.losses(logits, targets[partner], class_weights, smoothing)
            losses = share * losses + (1 - share) * others
            weights = share * weights + (1 - share) * their_weights
        return {
            "loss": (losses * present).sum(),
            "weight": (weights * present).sum(),
            "examples": present.sum(),
            "hits": (self.problem.hits(logits, targets) * present).sum(),
        }

    def metrics(self, sums: Mapping[str, float], outputs: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
        """Mean loss and accuracy; of an evaluation all that scikit-learn says of its outputs."""
        values = {"loss": sums["loss"] / max(sums["weight"], 1e-9)}
        if outputs is not None:
            return values | self.problem.metrics(*_of_pictures(outputs))
        return values | {"accuracy": sums["hits"] / max(sums["examples"], 1.0)}

    def metric_names(self) -> list[str]:
        """Found by measuring two pictures."""
        scores = np.zeros((2, self.config.model.num_labels), np.float32)
        return ["loss", *self.problem.metrics(scores, np.zeros(2, int))]

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.problem.details(*_of_pictures(outputs))

    def pictures(self, outputs: Mapping[str, np.ndarray], model: nnx.Module) -> dict[str, np.ndarray]:
        """Those of a classification, and the mistakes that the model is surest of."""
        from evaluation.pictures import picture_grid, render

        scores, targets = _of_pictures(outputs)
        figures = self.problem.pictures(scores, targets)
        guesses, rows = scores.argmax(1), outputs["index"][outputs["index"] >= 0]
        wrong = np.flatnonzero(guesses != targets)
        surest = wrong[np.argsort(-scores[wrong, guesses[wrong]], kind="stable")][:MISTAKES]
        if len(surest) and self.evaluated is not None:
            labels = self.config.data.labels
            titles = [f"{labels[guesses[i]]} {scores[i, guesses[i]]:.2f}, not {labels[targets[i]]}" for i in surest]
            figures["mistakes"] = picture_grid(self.evaluated[rows[surest]], titles)
        return {name: render(figure) for name, figure in figures.items()}

    # ---- predictions

    def predict(
        self, model: nnx.Module, lines: Iterator[str], options: LabelPictureOptions
    ) -> Iterator[dict[str, Any]]:
        """For each line, the path of a picture, its `path` and its `label` with `probabilities`, or its `features`."""

        @jax.jit
        def compute(model: Any, pixels: jax.Array) -> jax.Array:
            images = self.normalized(pixels)
            if options.features:
                return model.features(images).astype(jnp.float32)
            return self.problem.scores(model(images))

        for paths, pixels in self.picture_batches(lines, options.batch_size):
            numbers = np.asarray(compute(model, pixels))
            for path, of_picture in zip(paths, numbers, strict=False):
                said = {"features": [round(float(x), 6) for x in of_picture]} if options.features else None
                yield {"path": path} | (said or self.problem.answer(of_picture))

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        images = self.normalized(jnp.asarray(self.probe_pixels()))
        states = {f"hidden state {i}": x for i, x in enumerate(model.hidden_states(images))}
        return {name: np.asarray(x, np.float32) for name, x in (states | {"logits": model(images)}).items()}


def mix(images: jax.Array, mixup: float, cutmix: float, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each picture mixed with one other of the batch: the pictures, the number of the other, and the own share [batch].

    Args:
        images: [batch, height, width, channels].
        mixup, cutmix: a of the distribution Beta(a, a) that shares are drawn from, for each picture; 0 for never. With
            both, half of the pictures on average are mixed in each of the two ways.
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 5)
    partner = jnp.arange(batch)[::-1]
    others = images[::-1]
    kept = jax.random.beta(keys[0], mixup or 1.0, mixup or 1.0, (batch,))
    added = kept[:, None, None, None] * images + (1 - kept[:, None, None, None]) * others

    area = jax.random.beta(keys[1], cutmix or 1.0, cutmix or 1.0, (batch,))
    side = jnp.sqrt(1 - area)  # of the piece, as a share of the picture's
    inside = []
    for number, length in enumerate((height, width)):
        centre = jax.random.uniform(keys[2 + number], (batch,)) * length
        begin, end = (jnp.clip(jnp.round(centre + sign * side * length / 2), 0, length) for sign in (-1, 1))
        place = jnp.arange(length)
        inside.append((place >= begin[:, None]) & (place < end[:, None]))
    piece = inside[0][:, :, None] & inside[1][:, None, :]
    cut = jnp.where(piece[..., None], others, images)
    uncovered = 1 - piece.mean((1, 2))

    by_cutting = jax.random.bernoulli(keys[4], 0.5 if mixup and cutmix else float(bool(cutmix)), (batch,))
    mixed = jnp.where(by_cutting[:, None, None, None], cut, added)
    return mixed, partner, jnp.where(by_cutting, uncovered, kept)


def _fit_positions(origin: Any, model: Any, log: Log) -> None:
    """Interpolates the learned positions of a ViT that saw pictures of another size."""
    table = origin.weights.get(POSITIONS)
    size = model.image_size
    if table is None or origin.model.get("image_size", size) == size or size % model.get("patch_size", 1):
        return
    patches = (size // model.patch_size) ** 2
    origin.weights[POSITIONS] = resize_positions(np.asarray(table), patches)
    log(f"init_from: positions of {origin.name} interpolated from pictures of {origin.model['image_size']} to {size}")


def _of_pictures(outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets without the empty rows."""
    present = outputs["index"] >= 0
    return outputs["scores"][present], outputs["targets"][present]
