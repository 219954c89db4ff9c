"""What is computed: Flax modules, one family a file. Batches of arrays in, arrays out; no task, no optimizer, no file.

`MODELS` is the registry: the config's `model.name` chooses the family, the task chooses its head.
"""

import dataclasses
from typing import Any

from models.bert import BertConfig, BertFeatures, BertForMaskedLM, BertForSequenceClassification
from models.gpt import GptConfig, GptForCausalLM
from models.seq2seq import Seq2Seq, Seq2SeqConfig


@dataclasses.dataclass(frozen=True)
class Family:
    config: type  # frozen dataclass; its fields are config.model's
    heads: dict[str, Any]  # config.task -> module class


MODELS = {
    "bert": Family(
        BertConfig,
        {"mlm": BertForMaskedLM, "classification": BertForSequenceClassification, "features": BertFeatures},
    ),
    "transformer": Family(Seq2SeqConfig, {"seq2seq": Seq2Seq}),
    "gpt": Family(GptConfig, {"causal_lm": GptForCausalLM}),
}
