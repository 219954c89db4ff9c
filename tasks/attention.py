"""What a model looked at while it read a text, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from errors import UserError
from models.transformer import Watched


@jax.jit
def watch(model: Any, batch: Mapping[str, jax.Array]) -> Watched:
    """The attention probabilities of each of the decoder's layers."""
    watched: Watched = {"self": [], "cross": []}
    model.hidden_states(batch, watched=watched)
    return watched


def attention_figures(
    watched: Watched, asking: Sequence[str], own: Sequence[str], seen: Sequence[str] = ()
) -> dict[str, Any]:
    """Figures of the last layer's attentions, of the first row of the batch.

    Args:
        asking: what the places that look are called; `own` the tokens that stand there, which the places behind see;
            `seen` those of the memory that they look at across.

    Returns:
        `self_heads`: a panel for each head; with a memory also `cross_heads`, and `cross`, the mean of these.
    """
    from evaluation.pictures import attention_maps

    figures = {}
    for kind, tokens in (("cross", seen), ("self", own)):
        if watched[kind]:
            heads = np.asarray(watched[kind][-1])[0, :, : len(asking), : len(tokens)]
            if kind == "cross":
                figures["cross"] = attention_maps(heads.mean(0, keepdims=True), asking, tokens)
            figures[f"{kind}_heads"] = attention_maps(heads, asking, tokens)
    return figures


def save_figures(figures: Mapping[str, Any], folder: str, number: int) -> None:
    """Writes `FOLDER/0001.cross.png` and the like.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(Path(folder) / f"{number:04}.{name}.png")
    except OSError as error:
        raise UserError("--attention", f"{folder} ({error.strerror})", "Name a folder that can be written.") from error
