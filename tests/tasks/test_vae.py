import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import eval as evaluation
import predict
import train
from cli import config as configs
from errors import UserError
from models.vae import Posterior, Vae, VaeConfig
from tasks.vae import DRAWS, VariationalAutoencoding


def config_of(*words):
    return configs.from_command_line(["train.py", "--config=configs/vae.py:smoke", *words], "")[0]


def make_task(*words) -> VariationalAutoencoding:
    return VariationalAutoencoding.create(config_of(*words), lambda line: None)


def model_of(task: VariationalAutoencoding) -> Vae:
    from flax import nnx

    return task.build(nnx.Rngs(0))


def test_the_divergence_is_that_of_an_integral():
    posterior = Posterior(jnp.array([[0.3, -1.2]]), jnp.array([[-0.5, 0.7]]))
    x = np.linspace(-15, 15, 200_001)
    for i in range(2):
        own = stats.norm(float(posterior.mean[0, i]), np.exp(0.5 * float(posterior.log_variance[0, i])))
        integral = np.trapezoid(own.pdf(x) * (own.logpdf(x) - stats.norm.logpdf(x)), x)
        assert float(posterior.kl()[0, i]) == pytest.approx(integral, rel=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_surprise_is_minus_the_log_likelihood_of_scipy(likelihood):
    from flax import nnx

    config = VaeConfig(hidden_size=8, latent_size=3, image_size=4, channels=1, likelihood=likelihood)
    model = Vae(config, nnx.Rngs(0))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 2, (5, 4, 4, 1)).astype(np.float32)
    codes = generator.standard_normal((5, 3)).astype(np.float32)
    said = np.asarray(model.decode(codes), np.float64)
    if likelihood == "bernoulli":
        logs = stats.bernoulli.logpmf(images.reshape(5, -1), 1 / (1 + np.exp(-said)))
    else:
        logs = stats.norm.logpdf(images.reshape(5, -1), said, np.exp(0.5 * float(model.decoder.log_variance[...])))
    assert np.allclose(model.surprise(images, codes), -logs.sum(1), rtol=1e-4)


def test_samples_of_a_posterior_have_its_mean_and_deviation():
    posterior = Posterior(jnp.full((1, 1), 2.0), jnp.full((1, 1), jnp.log(0.25)))
    codes = posterior.sample(jax.random.normal(jax.random.key(0), (100_000, 1, 1)))
    assert float(codes.mean()) == pytest.approx(2, abs=0.01) and float(codes.std()) == pytest.approx(0.5, abs=0.01)


def test_the_loss_weighs_the_divergence_by_beta_and_the_bound_does_not():
    task = make_task("--config.data.beta=4.0")
    batch = task.rows("train").load(np.arange(8), np.zeros(8, int))
    sums = {name: float(value) for name, value in task.loss(model_of(task), batch, jax.random.key(0)).items()}
    assert sums["loss"] == pytest.approx(sums["reconstruction"] + 4 * sums["kl"], rel=1e-5)
    values = task.metrics(sums)
    assert values["elbo"] == pytest.approx(-(sums["reconstruction"] + sums["kl"]) / 8, rel=1e-5)


def test_an_evaluation_is_the_mean_over_draws_and_the_same_in_any_batch():
    task = make_task()
    model, rows = model_of(task), task.rows("valid")
    whole, outputs = task.evaluate(model, rows.load(np.arange(6), np.zeros(6, int)))
    halves = [task.evaluate(model, rows.load(np.arange(i, i + 3), np.zeros(3, int)))[0] for i in (0, 3)]
    assert float(whole["reconstruction"]) == pytest.approx(sum(float(h["reconstruction"]) for h in halves), rel=1e-5)

    batch = rows.load(np.arange(1), np.zeros(1, int))
    images = task.normalized(batch["pixels"])
    posterior = model.encode(images)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (DRAWS, 2))
    by_hand = np.mean([float(model.surprise(images, posterior.sample(noise[i : i + 1]))[0]) for i in range(DRAWS)])
    assert float(task.evaluate(model, batch)[0]["reconstruction"]) == pytest.approx(by_hand, rel=1e-4)


def test_empty_rows_count_for_nothing():
    task = make_task()
    model, rows = model_of(task), task.rows("valid")
    full = task.evaluate(model, rows.load(np.array([0, 1]), np.zeros(2, int)))[0]
    padded = task.evaluate(model, rows.load(np.array([0, 1, -1, -1]), np.zeros(4, int)))[0]
    assert all(float(full[name]) == pytest.approx(float(padded[name]), rel=1e-5) for name in full)


def test_a_run_learns_draws_its_pictures_and_encodes(tmp_path, capsys):
    workdir = tmp_path / "run"
    words = ["--config=configs/vae.py:smoke", f"--workdir={workdir}", "--config.train.steps=200"]
    assert train.main(["train.py", *words, "--config.train.eval_every=100"]) == 0
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    valid = [record for record in records if record["split"] == "valid"]
    assert valid[-1]["elbo"] > -31 and valid[-1]["elbo"] > valid[0]["elbo"]
    assert valid[-1]["kl"] > 0.5, "the code says something"
    assert evaluation.main(["eval.py", f"--workdir={workdir}"]) == 0
    drawn = {path.name.split(".")[1] for path in (workdir / "eval").glob("*.png")}
    assert drawn == {"samples", "reconstructions", "latent_plane", "codes"}
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "paths.txt").write_text(f"{tmp_path / 'grey.png'}\n")
    capsys.readouterr()
    flags = [f"--workdir={workdir}", f"--input={tmp_path / 'paths.txt'}", f"--reconstructions={tmp_path / 'out'}"]
    assert predict.main(["predict.py", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["code"]) == 2 and answer["elbo"] < 0
    assert Image.open(answer["reconstruction"]).size == (8, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.data.beta=0"], ("config.data.beta", "0")),
        (["--config.data.mean=(0.5,)"], ("config.data.mean",)),
        (["--config.model.latent_size=0"], ("config.model.latent_size", "0")),
        (["--config.model.likelihood=poisson"], ("config.model.likelihood", "'poisson'", "bernoulli")),
        (["--config.model.activation=tanhh"], ("config.model.activation", "'tanhh'")),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(words, said):
    with pytest.raises(UserError) as error:
        make_task(*words)
    for part in said:
        assert part in str(error.value), str(error.value)
