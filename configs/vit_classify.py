"""A ViT that labels pictures, from zero: by default the 1,797 scans of handwritten digits that scikit-learn brings.

    python train.py --config=configs/vit_classify.py

Held-out accuracy 0.986 after 78 s on two cores.

On your own pictures, a folder for each class, all brought to one size; or an .npz with `image` and `label`:

    python train.py --config=configs/vit_classify.py:cifar10 --workdir=runs/birds \
        --config.data.train=folder:birds --config.data.image_size=64 --config.model.patch_size=8

Variants: `:digits` (the default); `:cifar10`, 6 × 192 with patches of 4 × 4, and `:cifar10_resnet`, a ResNet-18 with
the stem for small pictures, on tfds:cifar10 or `--config.data.train=npz:PATH`; `:base`, 12 × 768 with patches of
16 × 16, for `--config.init_from=hf:google/vit-base-patch16-224-in21k`; `:smoke` for tests.
"""

from ml_collections import ConfigDict

from configs import base
from errors import UserError


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.get_config("pictures")
    config.task = "image_classification"

    config.model.name = "vit"
    config.model.num_layers, config.model.hidden_size, config.model.patch_size = 4, 64, 2
    config.model.num_heads = 4
    config.model.initializer_range = 0.1  # so narrow a model begins with larger weights than the usual 0.02

    config.data.train = "digits"
    config.data.holdout_share = 0.2
    config.data.labels = ()  # their order; empty: sorted
    config.data.class_weights = ""  # balanced, or LABEL:WEIGHT,…: what a class counts for in the loss
    config.data.label_smoothing = 0.0  # share of the target that is spread over all classes
    config.data.mixup = config.data.cutmix = 0.0  # a of the Beta(a, a) that pictures are mixed by; 0: not at all
    config.data.augment = "crop:1"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_share = 0.05
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rules = ((".*/(bias|scale|class_token)", 0), (".*", 1))
    config.train.epochs = 200.0
    config.train.batch_size = 64
    config.train.eval_every = config.train.checkpoint_every = 500
    config.train.ema = 0.99

    if variant.startswith("cifar10"):
        config.data.train, config.data.valid = "tfds:cifar10@train", "tfds:cifar10@test"
        config.data.augment = "crop:4,flip"
        config.train.epochs, config.train.ema = 50.0, 0.999

    if variant == "cifar10":
        config.model.num_layers, config.model.hidden_size, config.model.num_heads = 6, 192, 3
        config.model.patch_size = 4
        config.model.stochastic_depth = 0.1
        config.optimizer.learning_rate = 1e-3
        config.data.augment = "crop:4,flip,rand:2:9"
        config.data.mixup, config.data.cutmix = 0.2, 1.0
        config.data.label_smoothing = 0.1
    elif variant == "cifar10_resnet":
        config.model = ConfigDict({"name": "resnet"})
        config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.1
        config.optimizer.weight_decay, config.optimizer.clip_norm = 5e-4, 0.0
        config.optimizer.decay_rules = ((".*", 1),)
    elif variant == "base":
        config.model.num_layers, config.model.hidden_size, config.model.num_heads = 12, 768, 12
        config.model.patch_size = 16
        config.data.image_size, config.data.channels = 224, 3
        config.data.augment = "flip"
        config.optimizer.learning_rate, config.train.ema = 5e-5, 0.0
        config.train.epochs = 3.0
        config.dtype = "bfloat16"
    elif variant == "smoke":
        config.model.num_layers, config.model.hidden_size, config.model.num_heads = 1, 32, 2
        config.train.epochs, config.train.steps = 0.0, 20
        config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 10
        config.train.histogram_every = 0
    elif variant != "digits":
        raise UserError("--config", f"no variant {variant!r}", "Choose digits, cifar10, cifar10_resnet, base or smoke.")
    return config
