"""How good translations are, through sacreBLEU."""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF


def translation(said: Sequence[str], references: Sequence[str], chinese: bool = False) -> dict[str, float]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015), each of 100, and the share that is the reference itself.

    Args:
        chinese: the target is Chinese, whose words sacreBLEU must find first; else its tokenizer is 13a.
    """
    bleu, chrf = _scorers(chinese)
    return {
        "bleu": bleu.corpus_score(list(said), [list(references)]).score,
        "chrf": chrf.corpus_score(list(said), [list(references)]).score,
        "exact_match": sum(a == b for a, b in zip(said, references, strict=True)) / max(len(said), 1),
    }


def signatures(chinese: bool = False) -> dict[str, str]:
    """What sacreBLEU says of how it measured, after `translation` was called."""
    signed: dict[str, Any] = {}
    for name, scorer in zip(("bleu", "chrf"), _scorers(chinese), strict=True):
        scorer.corpus_score(["a"], [["a"]])  # a signature tells of a measurement
        signed[f"{name}_signature"] = str(scorer.get_signature())
    return signed


def _scorers(chinese: bool) -> tuple[BLEU, CHRF]:
    return BLEU(tokenize="zh" if chinese else "13a"), CHRF()
