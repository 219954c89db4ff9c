"""GPT-2's folders: in with transformers' own numbers, out with the tensors that came in."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import load_file, save_file

import convert
import train
from errors import UserError
from interop.folder import export_folder, open_folder
from models import MODELS, parameters

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "gpt2.npz"))
END = "<|endoftext|>"


def weights() -> dict[str, np.ndarray]:
    return {name.removeprefix("weights/"): array for name, array in GOLDEN.items() if name.startswith("weights/")}


@pytest.fixture
def write(tmp_path):
    """`write(tensors, **options of config.json)`: a folder as transformers saves one."""

    def written(tensors=None, **about) -> Path:
        folder = tmp_path / "gpt2"
        folder.mkdir(exist_ok=True)
        sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_inner": 64, "n_positions": 24, "vocab_size": 96}
        kinds = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
        (folder / "config.json").write_text(json.dumps({**sizes, **kinds, **about}))
        words = {END: 0} | {f"w{i}": i for i in range(1, 96)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=END))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        backend.add_special_tokens([END])
        backend.save(str(folder / "tokenizer.json"))
        whole = {name: np.ascontiguousarray(array) for name, array in (tensors or weights()).items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return written


def logits(found) -> np.ndarray:
    config = MODELS[found.name].config(**found.model)
    graphdef, shapes, state = parameters.structure(lambda rngs: MODELS[found.name].heads["causal_lm"](config, rngs))
    params = parameters.graft(shapes, {path: jnp.asarray(array) for path, array in found.params.items()})
    ids = GOLDEN["input_ids"]
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    batch = {"tokens": ids, "segment_ids": GOLDEN["attention_mask"], "positions": positions}
    return np.asarray(nnx.merge(graphdef, params, state)(batch, 96))


def changed(kind: str) -> dict[str, np.ndarray]:
    found = weights()
    if kind == "bare":
        return {name.removeprefix("transformer."): array for name, array in found.items()}
    if kind == "with the head and masks":
        masks = {f"transformer.h.{i}.attn.bias": np.tril(np.ones((1, 1, 24, 24), np.float32)) for i in range(2)}
        return found | masks | {"lm_head.weight": found["transformer.wte.weight"]}
    return found


@pytest.mark.parametrize("kind", ["as saved", "bare", "with the head and masks"])
def test_a_folder_gives_the_logits_of_transformers(write, kind):
    found = open_folder(write(changed(kind)))
    text = GOLDEN["attention_mask"] > 0
    expected = GOLDEN["logits"][text]
    np.testing.assert_allclose(logits(found)[text], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert found.heads == ("causal_lm",) and found.tokenizer.sep_id == found.tokenizer.cls_id == 0
    assert len(found.left_over) == (2 if kind == "with the head and masks" else 0)


def test_an_export_holds_the_tensors_that_came_in(write, tmp_path):
    found = open_folder(write())
    target = tmp_path / "out"
    export_folder(
        target,
        name=found.name,
        model=found.model,
        head="causal_lm",
        params=found.params,
        tokenizer=found.tokenizer,
    )
    out = load_file(target / "model.safetensors")
    assert out.keys() == weights().keys()
    for name, array in weights().items():
        np.testing.assert_array_equal(out[name], array, err_msg=name)
    about = json.loads((target / "config.json").read_text())
    assert about["architectures"] == ["GPT2LMHeadModel"] and about["n_inner"] == 64 and about["eos_token_id"] == 0
    settings = json.loads((target / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == settings["bos_token"] == END and "mask_token" not in settings
    assert settings["model_input_names"] == ["input_ids", "attention_mask"], "GPT-2 would add token types up"
    np.testing.assert_array_equal(logits(open_folder(target)), logits(found))


def test_a_folder_is_fine_tuned_and_comes_back_out(write, tmp_path, capsys):
    folder, run, text = write(), tmp_path / "run", tmp_path / "text.txt"
    text.write_text("\n\n".join(f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(1, 80)))
    words = ["train.py", "--config=configs/gpt_lm.py:smoke", f"--config.init_from={folder}", "--config.data.seq_len=24"]
    words += [f"--config.data.train=text:{text}", f"--workdir={run}", "--config.optimizer.schedule=constant"]
    words += ["--config.optimizer.warmup_steps=0", "--config.optimizer.layer_decay=0.5"]
    assert train.main([*words, "--config.train.steps=1"]) == 0
    assert train.main([*words, "--config.train.steps=2"]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["split"] == "train"] == [1, 2]
    assert convert.main(["convert.py", "export", f"--workdir={run}", f"--to={tmp_path / 'out'}"]) == 0
    assert convert.main(["convert.py", "verify", f"--workdir={run}", f"--with={tmp_path / 'out'}"]) == 0
    out, begun = load_file(tmp_path / "out" / "model.safetensors"), weights()
    assert out.keys() == begun.keys()
    moved = {name: np.abs(out[name] - begun[name]).max() for name in out}
    first, last = (moved[f"transformer.h.{i}.mlp.c_fc.weight"] for i in range(2))
    assert 0 < moved["transformer.wte.weight"] < first < last < 0.01, "lower layers move less"


def test_a_width_that_config_json_leaves_open_is_four_times_the_models(write):
    tensors = weights()
    draw = np.random.default_rng(0)
    for i in range(2):
        tensors[f"transformer.h.{i}.mlp.c_fc.weight"] = draw.normal(size=(32, 128)).astype(np.float32)
        tensors[f"transformer.h.{i}.mlp.c_fc.bias"] = np.zeros(128, np.float32)
        tensors[f"transformer.h.{i}.mlp.c_proj.weight"] = draw.normal(size=(128, 32)).astype(np.float32)
    assert np.isfinite(logits(open_folder(write(tensors, n_inner=None)))).all()


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx"),
        ("n_head", 5, "n_head"),
        ("activation_function", "tanh", "activation_function"),
        ("n_layer", 3, "h.2.mlp.c_proj"),
        ("n_inner", 48, "mlp.c_proj"),
        ("vocab_size", 500, "vocab_size"),
    ],
)
def test_what_is_computed_otherwise_or_does_not_fit_is_refused(write, option, value, message):
    with pytest.raises(UserError) as error:
        open_folder(write(**{option: value}))
    assert message in str(error.value)


def test_a_head_of_its_own_is_refused(write):
    with pytest.raises(UserError, match="tied"):
        open_folder(write(weights() | {"lm_head.weight": weights()["transformer.wte.weight"] + 1}))


def test_weights_without_a_piece_of_their_own_names_are_refused(write):
    tensors = weights()
    del tensors["transformer.h.1.attn.c_attn.weight"]
    with pytest.raises(UserError, match="c_attn"):
        open_folder(write(tensors))
