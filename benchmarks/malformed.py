"""What a user may get wrong, each in a process of its own: status 2, at most three lines, no traceback, in seconds.

    python -m benchmarks.malformed [--only=PART_OF_A_NAME] [--limit=0] [--seconds=5]

Over every command and every format of file: configs, texts, tables, pairs, pictures, tokenizers, foreign weights, runs.
One line a case, and one JSON object at the end. `limit` takes so many of the cases, from all over them; 0 all.
"""

import concurrent.futures
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cli import commandline

FLAGS: dict[str, Any] = {"only": "", "limit": 0, "seconds": 5.0}
ROOT = Path(__file__).parent.parent
TEXT = "\n\n".join(f"the {a} sees the {b}" for a in ("king", "queen", "river") for b in ("ship", "letter", "horse"))
MLM, CLASSIFY, PICTURES = (
    f"--config=configs/{name}.py:smoke" for name in ("bert_mlm", "bert_classify", "vit_classify")
)
TRANSLATE, GENERATE, VAE = (f"--config=configs/{name}.py:smoke" for name in ("transformer_mt", "gpt_lm", "vae"))
Words = list[str]


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    verdicts = try_all(**flags)
    print(json.dumps({"benchmark": "malformed", **flags, "good": sum(verdicts), "of": len(verdicts)}))
    return 0 if all(verdicts) else 1


def try_all(only: str = "", limit: int = 0, seconds: float = 5.0) -> list[bool]:
    """Whether each case went well; prints a line for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"ROOTSTOCK_CACHE": str(folder / "cache")}
        prepare(folder, environment)
        chosen = [item for item in cases(folder).items() if only in item[0]]
        chosen = chosen[:: max(1, len(chosen) // limit)][:limit] if limit else chosen

        def judge(item: tuple[str, Words]) -> bool:
            name, words = item
            for _ in range(3):  # a machine that was busy with something else gets another chance
                started = time.perf_counter()
                done = run(words, environment)
                took = time.perf_counter() - started
                if took <= seconds:
                    break
            lines = done.stderr.strip().splitlines()
            good = done.returncode == 2 and 1 <= len(lines) <= 3 and "Traceback" not in done.stderr
            quick = took <= seconds
            verdict = "good" if good and quick else f"BAD: status {done.returncode}, {len(lines)} lines"
            print(f"{name:44} {took:4.1f} s  {verdict}  {' / '.join(lines[:2])[:150]}", flush=True)
            return good and quick

        with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
            return list(pool.map(judge, chosen))


def run(words: Words, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, input=""
    )


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """A run of texts and one of pictures, a Hugging Face folder, and copies of them with one thing wrong."""
    (folder / "words.txt").write_text(TEXT)
    mlm = ["train.py", MLM, f"--workdir={folder / 'mlm'}", f"--config.data.train=text:{folder / 'words.txt'}"]
    mlm += ["--config.data.tokenizer=wordpiece:64", "--config.model.position=learned", "--config.train.steps=5"]
    pictures = ["train.py", PICTURES, f"--workdir={folder / 'vit'}", "--config.train.steps=1"]
    export = ["convert.py", "export", f"--workdir={folder / 'mlm'}", f"--to={folder / 'hf'}"]
    for words in (mlm, pictures, export):
        done = run(words, environment)
        assert done.returncode == 0, done.stderr

    def copy(name: str, of: str) -> Path:
        return Path(shutil.copytree(folder / of, folder / name))

    (copy("no-checkpoint", "mlm") / "checkpoints").rename(folder / "no-checkpoint" / "elsewhere")
    (copy("config-cut", "mlm") / "config.json").write_text('{"task": "mlm"')
    (copy("config-list", "mlm") / "config.json").write_text("[1, 2]")
    (copy("config-task", "mlm") / "config.json").write_text('{"task": "cooking"}')
    shutil.rmtree(copy("no-tokenizer", "mlm") / "tokenizer")
    damaged = copy("damaged", "mlm") / "checkpoints" / "5" / "manifest.json"
    damaged.write_text(damaged.read_text()[:-9])
    weights = (folder / "hf" / "model.safetensors").read_bytes()
    (copy("hf-cut", "hf") / "model.safetensors").write_bytes(weights[:-50])
    (copy("hf-header", "hf") / "model.safetensors").write_bytes(b"\xff" * 8 + weights[8:])
    (copy("hf-empty", "hf") / "model.safetensors").write_bytes(b"")
    (copy("hf-pickle", "hf") / "model.safetensors").rename(folder / "hf-pickle" / "pytorch_model.bin")
    about = json.loads((folder / "hf" / "config.json").read_text())
    for name, changes in {
        "hf-type": {"model_type": "t5"}, "hf-sizes": {"intermediate_size": 96}, "hf-deep": {"num_hidden_layers": 10**9},
        "hf-heads": {"num_attention_heads": 5}, "hf-act": {"hidden_act": "mish"}, "hf-null": {"hidden_size": None},
    }.items():  # fmt: skip
        (copy(name, "hf") / "config.json").write_text(json.dumps(about | changes))
    (copy("hf-json", "hf") / "config.json").write_text("{")
    (copy("hf-tokenizer", "hf") / "tokenizer.json").write_text("{}")
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    for number, pixels in enumerate(noise):
        path = folder / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (copy("pets-cut", "pets") / "cat" / "0.png").write_bytes((folder / "pets" / "cat" / "0.png").read_bytes()[:40])
    (copy("pets-bird", "pets") / "bird").mkdir()
    Image.fromarray(noise[0][:6]).save(copy("pets-sizes", "pets") / "dog" / "7.png")
    Image.fromarray(noise[0][..., 0]).save(copy("pets-grey", "pets") / "dog" / "7.png")
    shutil.make_archive(str(folder / "pets"), "zip", folder / "pets")
    good = np.arange(6)
    wrong: dict[str, dict[str, Any]] = {
        "floats": {"image": noise / 255, "label": good}, "first": {"image": noise.transpose(0, 3, 1, 2), "label": good},
        "short": {"image": noise, "label": good[:5]}, "negative": {"image": noise, "label": good - 1},
        "objects": {"image": np.array([{}], object)}, "unlabelled": {"image": noise}, "other": {"picture": noise},
    }  # fmt: skip
    for name, arrays in wrong.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "none.npz").write_bytes(b"PK\x03\x04 nothing")


FILES: dict[str, bytes] = {
    "empty.txt": b"", "blank.txt": b"\n \n", "latin.txt": "caf\xe9\n\nna\xefve".encode("latin-1"),
    "one.txt": b"one line",
    "cut.txt.gz": gzip.compress(TEXT.encode() * 20)[:40], "no.txt.gz": b"not packed",
    "ragged.csv": b"text,label\na,b\nc\n", "column.csv": b"body,label\na,b\n", "quote.csv": b'text,label\n"a,b\n',
    "header.csv": b"text,label\n", "twice.csv": b"text,text,label\na,b,c\n",
    "single.csv": b"text,label\na,x\nb,x\nc,x\n",
    "hole.csv": b"text,label\na,x\nb,\nc,y\n", "ragged.tsv": b"text\tlabel\na\tb\tc\n",
    "number.csv": b"text,label\na,1\nb,cheap\nc,2\n",
    "no.jsonl": b'{"text": "a"}\nnothing\n', "list.jsonl": b"[1]\n", "type.jsonl": b'{"text": 7}\n',
    "half.jsonl": b'{"text": "\\ud800"}\n', "column.jsonl": b'{"body": "a"}\n', "deep.jsonl": b"[" * 100_000,
    "a.low": b"one\ntwo\nthree\n", "a.up": b"ONE\nTWO\n", "b.up": b"ONE\n\nTHREE\n",
    "syntax.py": b"def get_config(:\n", "raises.py": b"def get_config():\n    return 1 / 0\n", "nothing.py": b"x = 1\n",
    "tokenizer.json": b"{", "vocab.txt": b"", "pieces.model": b"no model", "latin-lines.txt": b"caf\xe9\n",
}  # fmt: skip


def cases(folder: Path) -> dict[str, Words]:
    """The words of each command that must be refused, by name."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    text, out = f"--config.data.train=text:{folder / 'words.txt'}", f"--workdir={folder / 'out'}"
    small = "--config.data.tokenizer=wordpiece:64"
    found: dict[str, Words] = {}

    def train(group: str, config: str, *common: str) -> Callable[..., None]:
        def add(name: str, *words: str) -> None:
            given = {word.split("=")[0] for word in words}
            found[f"{group}: {name}"] = [
                "train.py",
                config,
                out,
                *(w for w in common if w.split("=")[0] not in given),
                *words,
            ]

        return add

    add = train("config", MLM, text, small)
    for flag in (
        "train.stepz=1", "train.steps=many", "train.steps=-1", "train.steps=1.5", "train.batch_size=0", "seed=-1",
        "optimizer.learning_rate=nan", "optimizer.learning_rate=inf", "optimizer.name=adamx", "optimizer.schedule=cos",
        "optimizer.rules=x", "optimizer.rules=(('nothing',1.0),('.*',1.0))", "optimizer.rules=(('embeddings/.*',1.0),)",
        "optimizer.rules=(('.*','freeze'),)", "optimizer.phases=((5,(('.*',1.0),)),)", "optimizer.warmup_steps=99",
        "train.accumulate=3", "train.ema=1", "train.best_metric=beauty", "task=cooking", "model.name=bird",
        "model.name=vit", "model.num_heads=7", "model.activation=relux", "model.dropout=1", "model.layer_scale=-1",
        "data.seq_len=1", "data.mask_rate=2", "data.holdout=top", "data.holdout_share=1", "data.whole_word=perhaps",
        "dtype=float8", "mesh.data=3", "init_from=/no/such/run", "lora.rank=-1",
    ):  # fmt: skip
        add(flag, f"--config.{flag}")
    add("a stray word", "word")
    add("a flag of nothing", "--colour=red")
    for name in ("syntax.py", "raises.py", "nothing.py", "missing.py"):
        found[f"config: {name}"] = ["train.py", f"--config={folder / name}", out]
    found["config: none"] = ["train.py"]
    found["config: no such variant"] = ["train.py", "--config=configs/bert_mlm.py:giant", out]
    found["workdir: a foreign folder"] = ["train.py", MLM, text, f"--workdir={folder / 'pets'}"]
    found["workdir: a name too long"] = ["train.py", MLM, text, f"--workdir={folder / ('x' * 300)}"]
    found["eval.py: a name too long"] = ["eval.py", f"--workdir={'x' * 300}"]
    found["init_from: a name too long"] = ["train.py", MLM, text, out, f"--config.init_from={'x' * 300}?"]
    found["workdir: a file"] = ["train.py", MLM, text, f"--workdir={folder / 'words.txt'}"]
    found["workdir: another experiment"] = [
        "train.py",
        MLM,
        text,
        small,
        f"--workdir={folder / 'mlm'}",
        "--config.seed=5",
    ]
    found["workdir: damaged checkpoints"] = [
        "train.py", MLM, text, small, "--config.model.position=learned", "--config.train.steps=9",
        f"--workdir={folder / 'damaged'}",
    ]  # fmt: skip

    add = train("texts", MLM, small)
    for name in ("empty.txt", "blank.txt", "latin.txt", "one.txt", "cut.txt.gz", "no.txt.gz", "missing.txt"):
        add(name, f"--config.data.train=text:{folder / name}")
    add("a folder", f"--config.data.train=text:{folder}")
    add("no kind", f"--config.data.train={folder / 'words.txt'}")
    for name in ("no.jsonl", "list.jsonl", "type.jsonl", "half.jsonl", "column.jsonl", "deep.jsonl"):
        add(name, f"--config.data.train=jsonl:{folder / name}")
    add = train("labels", CLASSIFY, small, "--config.init_from=")
    for name in ("ragged.csv", "column.csv", "quote.csv", "header.csv", "twice.csv", "single.csv", "hole.csv"):
        add(name, f"--config.data.train=csv:{folder / name}")
    add("ragged.tsv", f"--config.data.train=tsv:{folder / 'ragged.tsv'}")
    add("number.csv", f"--config.data.train=csv:{folder / 'number.csv'}", "--config.data.problem=regression")
    add = train("pairs", TRANSLATE, "--config.data.source=low", "--config.data.target=up")
    add("unequal files", f"--config.data.train=parallel:{folder / 'a.low'},{folder / 'a.up'}")
    add("an empty side", f"--config.data.train=parallel:{folder / 'a.low'},{folder / 'b.up'}")
    add("one file", f"--config.data.train=parallel:{folder / 'a.low'}")
    add = train("tokenizers", MLM, text)
    for name in ("tokenizer.json", "vocab.txt", "pieces.model", "missing.json"):
        add(name, f"--config.data.tokenizer={folder / name}")
    add("wordpeice:64", "--config.data.tokenizer=wordpeice:64")
    add("wordpiece:1", "--config.data.tokenizer=wordpiece:1")
    add = train("pictures", PICTURES)
    for name in ("pets-cut", "pets-bird", "pets-sizes", "pets-grey", "pets/cat", "pets.zip", "missing"):
        add(name, f"--config.data.train=folder:{folder / name}")
    for name in ("floats", "first", "short", "negative", "objects", "unlabelled", "other", "none", "missing"):
        add(f"{name}.npz", f"--config.data.train=npz:{folder / name}.npz")
    for flag in ("model.patch_size=3", "data.augment=crop", "data.mixup=-1", "data.mean=(1,2)", "data.train=csv:x.csv"):
        add(flag, f"--config.{flag}")
    train("pictures", VAE)("beta=0", "--config.data.beta=0")
    add = train("weights", CLASSIFY, f"--config.data.train=csv:{folder / 'single.csv'}")
    for name in (
        "cut",
        "header",
        "empty",
        "pickle",
        "type",
        "sizes",
        "deep",
        "heads",
        "act",
        "null",
        "json",
        "tokenizer",
    ):
        add(f"hf-{name}", f"--config.init_from={folder / f'hf-{name}'}")
        found[f"import: hf-{name}"] = ["convert.py", "import", f"--from={folder / f'hf-{name}'}", out]

    mlm, vit = f"--workdir={folder / 'mlm'}", f"--workdir={folder / 'vit'}"
    for command in ("eval.py", "predict.py"):
        found[f"{command}: no workdir"] = [command]
        for name in (
            "missing",
            "no-checkpoint",
            "config-cut",
            "config-list",
            "config-task",
            "no-tokenizer",
            "damaged",
            "pets",
        ):
            found[f"{command}: {name}"] = [command, f"--workdir={folder / name}"]
        for flag in ("--checkpoint=7", "--checkpoint=worst", "--checkpoint=best", "--chekpoint=last"):
            found[f"{command}: {flag}"] = [command, mlm, flag]
    for flag in ("--split=train", "--split=test", f"--data=text:{folder / 'missing.txt'}", "--data=digits"):
        found[f"eval.py: {flag.split('/')[0]}"] = ["eval.py", mlm, flag]
    for flag in (
        f"--input={folder / 'missing.txt'}", f"--input={folder / 'latin-lines.txt'}", "--top_k=0", "--top_k=many",
        f"--input={folder / 'words.txt'} --output=/no/such/folder/out", "--temperature=1",
    ):  # fmt: skip
        found[f"predict.py: {flag.replace(str(folder), '')}"] = ["predict.py", mlm, *flag.split()]
    found["predict.py: no pictures"] = ["predict.py", vit, f"--input={folder / 'words.txt'}"]
    for words in ("", "exprot", "export --to=x", "import --from=x", "check", f"export {mlm} --to={folder}", "verify"):
        found[f"convert.py: {words.replace(str(folder), '')}"] = ["convert.py", *words.split()]
    found["convert.py: check damaged"] = ["convert.py", "check", f"--workdir={folder / 'damaged'}"]
    found["convert.py: verify another model"] = ["convert.py", "verify", vit, f"--with={folder / 'hf'}"]
    found["generate: characters of none"] = [
        "train.py",
        GENERATE,
        out,
        f"--config.data.train=text:{folder / 'empty.txt'}",
    ]
    return found


if __name__ == "__main__":
    commandline.run(main)
