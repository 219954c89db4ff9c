"""Every common key with its default. An experiment starts from these and changes what it is about.

Every key can be overridden on the command line, `--config.train.steps=500`, and so can every field of the named model's
dataclass in `models/`, listed in the experiment or not.
"""

from ml_collections import ConfigDict


def get_config(reads: str = "texts") -> ConfigDict:
    """Of an experiment that reads `texts` or `pictures`."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order, the masks and the dropout
    config.task = ""  # a name of tasks.TASKS: mlm | classification | causal_lm | seq2seq | image_classification | vae
    # Where the weights come from: a run's workdir, a Hugging Face folder, hf:NAME of the Hub, or empty: from zero. With
    # a ? at the end: only if it is there.
    config.init_from = ""
    config.dtype = "float32"  # of the computation: float32 | bfloat16; parameters and optimizer are float32

    config.model = ConfigDict()
    config.model.name = (
        ""  # a name of models.MODELS: bert | gpt | transformer | vit | resnet | lstm | gru | mlp | cnn | vae
    )

    config.data = ConfigDict()
    # pydocs | cldr | text:PATH | jsonl:PATH | csv:PATH | tsv:PATH | parallel:PATH,PATH | tfds:NAME[/CONFIG][@SPLIT]
    # and of pictures digits | npz:PATH | folder:DIR | tfds:NAME[/CONFIG][@SPLIT]
    config.data.train = ""
    config.data.valid = ""  # the same; empty: documents or pictures held out of the training source
    config.data.test = ""  # the same; for eval.py --split=test
    config.data.label = "label"  # the column that holds the label, where the task has labels
    config.data.limit = 0  # training documents or pictures that are used, chosen by chance; 0: all
    config.data.holdout = "hash"  # which are held out: by hash of their content, or the tail
    config.data.holdout_share = 0.05
    if reads == "texts":
        config.data.text = "text"  # the column of a jsonl, csv, tsv or tfds source that holds the text
        config.data.document = "paragraph"  # what a document is in a text source: paragraph | line | file
        # wordpiece:N | unigram:N | bpe:N, trained on the training split; or a path
        config.data.tokenizer = "wordpiece:8192"
        config.data.seq_len = 128  # tokens in a row
    else:
        config.data.image = "image"  # the array of an npz source, or the column of a tfds source, with the pictures
        config.data.image_size = 0  # the side of the square that they are brought to; 0: as they are, all of one size
        config.data.channels = 0  # 1 (grey) or 3 (colours) that all are brought to; 0: as they are
        config.data.on_error = "stop"  # what becomes of a picture that cannot be decoded: stop | skip
        config.data.mean = config.data.std = ()  # of each channel, from 0 to 1, that pictures are normalised by; empty:
        # those of the training pictures, which are kept here
        # What is done to training pictures, in this order: crop:PIXELS, flip, jitter:STRENGTH, erase:SHARE, rand:N:M
        config.data.augment = ""

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | adam | sgd | rmsprop | lion | lamb | adafactor
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "linear"  # constant | linear | cosine | rsqrt | exponential
    config.optimizer.warmup_steps = 0  # or, if 0, …
    config.optimizer.warmup_share = 0.0  # … this share of all steps
    config.optimizer.final_share = 0.0  # of the learning rate, where linear, cosine and exponential end
    config.optimizer.b1 = 0.9  # first moment; sgd's momentum
    config.optimizer.b2 = 0.98  # second moment
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01  # decoupled; for adam, sgd and rmsprop L2 in the gradient
    config.optimizer.l1 = 0.0  # factor of the sum of absolute values in the loss
    config.optimizer.decay_rules = ((".*/(bias|scale)", 0), (".*", 1))  # first match over parameter paths
    config.optimizer.clip_norm = 1.0  # largest global norm of the gradient; 0: no bound
    # What is trained, first match over parameter paths: 'freeze', or a factor of the learning rate.
    config.optimizer.rules = ((".*", 1.0),)
    config.optimizer.phases = ()  # the same for stretches of the run: ((0, rules), (500, rules), …), by first step
    config.optimizer.layer_decay = 1.0  # the rate times this for each layer further from the head

    config.lora = ConfigDict()  # adapters: with them, embeddings and encoder are frozen unless rules are given
    config.lora.rank = 0  # 0: none
    config.lora.alpha = 16.0  # their product is scaled by alpha / rank
    config.lora.kernels = (
        "(encoder|decoder)/layers/[0-9]+/attention/(query|value)/kernel"  # the kernels that have adapters
    )

    config.train = ConfigDict()
    config.train.steps = 0  # optimizer steps; or, if 0, …
    config.train.epochs = 0.0  # … passes over the training rows
    config.train.batch_size = 32  # rows over all devices
    config.train.accumulate = 1  # micro-batches that a batch is split into, to save memory
    config.train.log_every = 50
    config.train.eval_every = 500  # 0: at the end alone
    config.train.eval_batches = 0  # how many batches an evaluation in training takes; 0: all
    config.train.checkpoint_every = 500  # 0: at the end alone
    config.train.keep = 2  # newest checkpoints that are kept; one alone could not stand in if the newest is damaged
    config.train.best_metric = ""  # of an evaluation, such as accuracy or loss; its best checkpoint is kept as well
    config.train.patience = 0  # stop after so many evaluations without a better one; 0: never
    config.train.ema = 0.0  # an average of the parameters over steps, kept by this share, is what is evaluated; 0: none
    config.train.bad_steps = 1  # the run ends when so many steps in a row have a loss or gradient that is not finite
    # How often, instead of ending, or where the loss leaps, it goes back to its newest checkpoint, and on from there
    # without the batches since then
    config.train.rollbacks = 0
    config.train.histogram_every = 500  # histograms of parameters and gradients in TensorBoard; 0: none

    config.mesh = ConfigDict()
    # Their product is the number of devices; -1, of one of them, is what the others leave.
    config.mesh.data = -1  # devices that share a batch, each with the whole model
    config.mesh.fsdp = 1  # devices that share a batch and the parameters, which are gathered where they are used
    config.mesh.tensor = 1  # devices that share the heads and the inner width of a Transformer's layers
    return config
