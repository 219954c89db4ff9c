"""What is computed: Flax modules, one family a file. Batches of arrays in, arrays out; no task, no optimizer, no file.

`MODELS` is the registry: the config's `model.name` chooses the family, the task chooses its head.
"""

import dataclasses
from typing import Any

from models.bert import BertConfig, BertFeatures, BertForMaskedLM, BertForSequenceClassification
from models.cnn import CnnConfig, CnnForImageClassification, CnnForSequenceClassification
from models.gpt import GptConfig, GptForCausalLM
from models.mlp import MlpConfig, MlpForImageClassification, MlpForSequenceClassification
from models.recurrent import GruForSequenceClassification, LstmForSequenceClassification, RecurrentConfig
from models.resnet import ResNetConfig, ResNetForImageClassification
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.vae import Vae, VaeConfig
from models.vit import ViTConfig, ViTForImageClassification


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
    "vit": Family(ViTConfig, {"image_classification": ViTForImageClassification}),
    "lstm": Family(RecurrentConfig, {"classification": LstmForSequenceClassification}),
    "gru": Family(RecurrentConfig, {"classification": GruForSequenceClassification}),
    "mlp": Family(
        MlpConfig,
        {"classification": MlpForSequenceClassification, "image_classification": MlpForImageClassification},
    ),
    "cnn": Family(
        CnnConfig,
        {"classification": CnnForSequenceClassification, "image_classification": CnnForImageClassification},
    ),
    "vae": Family(VaeConfig, {"vae": Vae}),
    "resnet": Family(ResNetConfig, {"image_classification": ResNetForImageClassification}),
}
