"""An encoder without a head, as an import of a bare Hugging Face folder is: nothing to train, embeddings to predict."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.pipeline import Rows
from errors import UserError
from tasks.lines import embed, probe_batch
from tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """The flags that predict.py takes for this task."""

    features: str = "mean"  # cls | mean
    batch_size: int = 32  # lines that are computed together


class Features(TextTask):
    """Embeds texts."""

    Options = FeatureOptions

    @staticmethod
    def check(config: Any) -> None:
        mend = "Name a task that learns: --config=configs/bert_classify.py --config.init_from=…"
        raise UserError("config.task", "features has no loss to train on", mend)

    def rows(self, split: str, source: str = "") -> Rows:
        mend = "Use predict.py for its embeddings, or fine-tune it: --config.init_from=…"
        raise UserError("--workdir", "a run of task features has no metrics to evaluate", mend)

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        return {"hidden states": np.asarray(jnp.stack(model.hidden_states(probe_batch(self))), np.float32)}

    def predict(self, model: nnx.Module, lines: Iterator[str], options: FeatureOptions) -> Iterator[dict[str, Any]]:
        """For each line its text and `features`."""
        return embed(self, model, lines, options.features, options.batch_size, truncation="head")
