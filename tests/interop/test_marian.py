"""MarianMT's folders: transformers' own numbers, two SentencePiece models and one vocabulary."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from flax import nnx
from safetensors.numpy import save_file

import convert
import tasks
import train
from errors import UserError
from interop.folder import open_folder
from models import MODELS, parameters
from tasks.seq2seq import TranslateOptions

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "marian.npz"))


def weights() -> dict[str, np.ndarray]:
    return {name.removeprefix("weights/"): array for name, array in GOLDEN.items() if name.startswith("weights/")}


def trained(texts: list[str]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 30), model_writer=model, vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models():
    return {
        "source.spm": trained(["der alte könig sieht den wald", "die königin findet einen brief"]),
        "target.spm": trained(["the old king sees the forest", "the queen finds a letter"]),
    }


@pytest.fixture
def write(tmp_path, models):
    """`write(tensors, **options of config.json)`: a folder as transformers saves one."""

    def written(tensors=None, **about) -> Path:
        folder = tmp_path / "marian"
        folder.mkdir(exist_ok=True)
        sizes = {"d_model": 32, "max_position_embeddings": 32, "vocab_size": 96, "scale_embedding": True}
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 64}
        kinds = {"model_type": "marian", "architectures": ["MarianMTModel"], "activation_function": "swish"}
        (folder / "config.json").write_text(json.dumps({**sizes, **kinds, **about}))
        pieces = ["<pad>", "</s>", "<unk>"]
        for name, model in models.items():
            (folder / name).write_bytes(model)
            backend = sentencepiece.SentencePieceProcessor()
            backend.LoadFromSerializedProto(model)
            pieces += [backend.IdToPiece(i) for i in range(3, backend.GetPieceSize())]
        pieces = list(dict.fromkeys(pieces))[:96]
        pieces += [f"w{i}" for i in range(96 - len(pieces))]
        (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        whole = {name: np.ascontiguousarray(array) for name, array in (tensors or weights()).items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return written


def logits(found) -> np.ndarray:
    config = MODELS[found.name].config(**found.model)
    graphdef, shapes, state = parameters.structure(lambda rngs: MODELS[found.name].heads["seq2seq"](config, rngs))
    params = parameters.graft(shapes, {path: jnp.asarray(array) for path, array in found.params.items()})
    batch = {}
    for side, prefix in (("source", ""), ("target", "decoder_")):
        batch[f"{side}_tokens"] = GOLDEN[f"{prefix}input_ids"]
        batch[f"{side}_segment_ids"] = GOLDEN[f"{prefix}attention_mask"]
        shape = GOLDEN[f"{prefix}input_ids"].shape
        batch[f"{side}_positions"] = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return np.asarray(nnx.merge(graphdef, params, state)(batch, 96))


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_gives_the_logits_of_transformers(write, tied):
    copies = {f"model.{side}.embed_tokens.weight": weights()["model.shared.weight"] for side in ("encoder", "decoder")}
    found = open_folder(write(weights() | (copies if tied else {})))
    text = GOLDEN["decoder_attention_mask"] > 0
    expected = GOLDEN["logits"][text]
    np.testing.assert_allclose(logits(found)[text], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert found.left_over == () and found.heads == ("seq2seq",)


def test_an_imported_run_translates_and_verifies(write, tmp_path):
    folder, run = write(), tmp_path / "run"
    assert convert.main(["convert.py", "import", f"--from={folder}", f"--workdir={run}"]) == 0
    assert convert.main(["convert.py", "verify", f"--workdir={run}", f"--with={folder}"]) == 0
    task, model = tasks.restore(run)
    own, other = task.tokenizer, task.target_tokenizer
    text = "der alte könig"
    ids = own.encode_batch([text])[0]
    assert [own.token(i) for i in ids] == sentencepiece_pieces(folder / "source.spm", text)
    assert own.decode(ids) == text and own.unk_id not in ids
    assert other.decode(other.encode_batch(["the old king"])[0]) == "the old king"
    (answer,) = task.predict(model, iter([text]), TranslateOptions(max_tokens=8, beams=3))
    assert 0 < answer["tokens"] <= 8
    # The decoder starts with the padding, as transformers' does.
    assert (other.cls_id, other.sep_id, own.sep_id) == (0, 1, 1)
    assert jax.tree.leaves(model)


def test_a_folder_is_fine_tuned_and_the_run_goes_on(write, tmp_path, capsys):
    folder, run, pairs = write(), tmp_path / "run", tmp_path / "pairs.tsv"
    lines = ["der alte könig\tthe old king", "die königin sieht\tthe queen sees", "einen brief\ta letter"] * 4
    pairs.write_text("de\ten\n" + "\n".join(lines) + "\n")
    words = ["train.py", "--config=configs/transformer_mt.py:smoke", f"--config.init_from={folder}"]
    words += [f"--config.data.train=tsv:{pairs}", "--config.data.source=de", "--config.data.target=en"]
    words += [f"--workdir={run}", "--config.optimizer.schedule=constant", "--config.optimizer.warmup_share=0"]
    assert train.main([*words, "--config.train.steps=1"]) == 0
    assert f"init_from {folder}" in capsys.readouterr().out
    about = json.loads((run / "config.json").read_text())
    assert about["model"]["num_layers"] == 2 and about["model"]["vocab_size"] == 96, "the folder decides"
    folder.rename(tmp_path / "elsewhere")
    assert train.main([*words, "--config.train.steps=2"]) == 0
    assert "goes on at step 1" in capsys.readouterr().out
    begun = open_folder(tmp_path / "elsewhere").params
    trained_now = parameters.flatten(parameters.split(tasks.restore(run)[1])[1])
    assert begun.keys() == trained_now.keys()
    moved = [np.abs(np.asarray(trained_now[path]) - begun[path]).max() for path in begun]
    assert 0 < max(moved) < 0.01, "two small steps away from the folder's weights"


def sentencepiece_pieces(path: Path, text: str) -> list[str]:
    backend = sentencepiece.SentencePieceProcessor()
    backend.LoadFromFile(str(path))
    return backend.EncodeAsPieces(text)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("normalize_before", True, "normalize_before"),
        ("decoder_attention_heads", 8, "decoder_attention_heads"),
        ("scale_embedding", "yes", "scale_embedding"),
        ("decoder_layers", 3, "model.decoder.layers.2"),
        ("vocab_size", 500, "vocab_size"),
    ],
)
def test_what_is_computed_otherwise_or_does_not_fit_is_refused(write, option, value, message):
    with pytest.raises(UserError) as error:
        open_folder(write(**{option: value}))
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["vocab.json", "source.spm", "target.spm"])
def test_a_missing_file_of_the_tokenizers_is_named(write, name):
    folder = write()
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        open_folder(folder)


def test_a_vocabulary_with_gaps_is_refused(write):
    folder = write()
    ids = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({piece: i + (i > 50) for piece, i in ids.items()}))
    with pytest.raises(UserError, match="gaps"):
        open_folder(folder)
