"""A BERT that labels texts: fine-tuned from a pretraining run or a Hugging Face folder, or from zero.

    python train.py --config=configs/bert_classify.py

learns which package wrote a docstring, from runs/bert_mlm if it is there and from zero if not. On your own labels:

    python train.py --config=configs/bert_classify.py --config.data.train=csv:train.csv \
        --config.data.text=text --config.data.label=label

Variants: `:tiny` (the default) and `:mini` go on from the pretraining run of their size; `:base` has the rate of a full
pretrained BERT, for `--config.init_from=/path/to/huggingface/folder` or `hf:bert-base-uncased`; `:smoke` for tests.
"""

from ml_collections import ConfigDict

from configs import base
from errors import UserError


def get_config(variant: str = "tiny") -> ConfigDict:
    config = base.get_config()
    config.task = "classification"

    config.model.name = "bert"
    config.model.num_layers, config.model.hidden_size = 2, 128

    config.data.train = "pydocs"
    config.data.text_pair = ""  # the column of a second text, for pairs
    config.data.problem = "multiclass"  # one label a text; multilabel: any number of them; regression: a number
    config.data.labels = ()  # their order; empty: sorted
    config.data.label_separator = ","  # between the labels of a multilabel record, where they are no JSON list
    config.data.class_weights = ""  # balanced, or LABEL:WEIGHT,…: what a class counts for in the loss
    config.data.label_smoothing = 0.0  # share of the target that is spread over all classes
    config.data.truncation = "head"  # what is kept of a text longer than seq_len: head | tail | head+tail
    config.data.target_mean, config.data.target_scale = 0.0, 1.0  # of a regression; found in the training split

    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_share = 0.06
    config.train.epochs = 2.0
    config.train.batch_size = 8  # rows of 128 tokens; a row holds as many texts as it has room for
    config.train.eval_every = config.train.checkpoint_every = 1_000

    if variant in ("tiny", "mini"):
        config.init_from = "runs/bert_mlm?" if variant == "tiny" else "runs/bert_mlm-mini?"
        config.model.position = "rope"
        config.model.dropout = config.model.attention_dropout = 0.0

    if variant == "mini":
        config.model.num_layers, config.model.hidden_size = 4, 256
        config.optimizer.learning_rate = 5e-4
    elif variant == "base":
        config.model.num_layers, config.model.hidden_size = 12, 768
        config.data.tokenizer = "wordpiece:30522"
        config.optimizer.learning_rate = 5e-5
    elif variant == "smoke":
        config.model.num_layers, config.model.hidden_size = 1, 32
        config.data.tokenizer = "wordpiece:512"
        config.data.seq_len = 32
        config.train.epochs, config.train.steps = 0.0, 20
        config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 10
        config.train.histogram_every = 0
    elif variant != "tiny":
        raise UserError("--config", f"no variant {variant!r}", "Choose tiny, mini, base or smoke.")
    return config
