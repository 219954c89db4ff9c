"""Pretrain a GPT from zero by language modelling: name the next token.

    python train.py --config=configs/gpt_lm.py                         # 2 layers × 128 on English docstrings
    python train.py --config=configs/gpt_lm.py:mini                    # 4 × 256
    python train.py --config=configs/gpt_lm.py:shakespeare_char --config.data.train=text:tinyshakespeare.txt
    echo "returns the" | python predict.py --workdir=runs/gpt_lm --temperature=0.8 --top_k=40

The first takes eight minutes on two cores, to 1.345 bits a held-out byte; :shakespeare_char two, to a loss of 1.73.
Sizes: :tiny (the default) 2 × 128, :mini 4 × 256, :small 4 × 512, :base 12 × 768 as GPT-2 (for accelerators).
:shakespeare_char has the small setting of nanoGPT on characters: 4 × 128, 64 characters of context, batches of 12,
2,000 steps, random windows of one text whose last tenth is held out. :smoke is for tests.
"""

from ml_collections import ConfigDict

from configs import base
from errors import UserError


def get_config(variant: str = "tiny") -> ConfigDict:
    config = base.get_config()
    config.task = "causal_lm"

    config.model.name = "gpt"
    config.model.num_layers, config.model.hidden_size = 2, 128

    config.data.train = "pydocs"
    config.data.tokenizer = "bpe:8192"
    config.data.windows = False  # rows are stretches of the text, its documents joined; else packed documents

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 200
    config.train.batch_size = 16
    config.train.steps = 2_500

    if variant in ("tiny", "mini", "small", "shakespeare_char"):
        config.model.position = "rope"
        config.model.dropout = config.model.attention_dropout = 0.0

    if variant == "mini":
        config.model.num_layers, config.model.hidden_size = 4, 256
        config.optimizer.learning_rate = 1.5e-3
    elif variant == "small":
        config.model.num_layers, config.model.hidden_size = 4, 512
        config.optimizer.learning_rate = 7e-4
    elif variant == "base":
        config.model.num_layers, config.model.hidden_size = 12, 768
        config.dtype = "bfloat16"
        config.data.train = "tfds:wikipedia/20230601.en"
        config.data.tokenizer = "bpe:50257"
        config.data.seq_len = 1024
        config.data.holdout_share = 0.001
        config.optimizer.learning_rate = 6e-4
        config.optimizer.weight_decay = 0.1
        config.optimizer.schedule = "cosine"
        config.optimizer.final_share = 0.1
        config.optimizer.warmup_steps = 2_000
        config.train.steps = 300_000
        config.train.batch_size = 480
    elif variant == "shakespeare_char":
        config.model.num_layers, config.model.hidden_size, config.model.num_heads = 4, 128, 4
        config.data.train = ""  # text:PATH
        config.data.document, config.data.windows = "file", True
        config.data.holdout, config.data.holdout_share = "tail", 0.1
        config.data.tokenizer, config.data.seq_len = "char", 64
        config.optimizer.schedule = "cosine"
        config.train.batch_size = 12
        config.train.steps = 2_000
        config.train.eval_every = config.train.checkpoint_every = 1_000
    elif variant == "smoke":
        config.model.num_layers, config.model.hidden_size = 1, 32
        config.data.tokenizer = "bpe:512"
        config.data.seq_len = 32
        config.train.batch_size = 8
        config.train.steps = 20
        config.optimizer.learning_rate = 2e-3
        config.optimizer.warmup_steps = 5
        config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 10
        config.train.eval_batches = 4
    elif variant != "tiny":
        choices = "tiny, mini, small, base, shakespeare_char or smoke"
        raise UserError("--config", f"no variant {variant!r}", f"Choose {choices}.")
    return config
