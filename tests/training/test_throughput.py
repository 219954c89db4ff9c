import time

import jax
import pytest

from training import throughput
from training.throughput import Meter, measured_peak, peak_flops, training_flops


def test_the_meter_counts_only_while_it_goes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter()

    def passes(seconds):
        now[0] += seconds

    passes(5)
    meter.start()
    passes(2)
    meter.stop()
    passes(100)  # an evaluation
    meter.start()
    passes(1)
    assert meter.lap() == 3
    passes(4)
    assert meter.lap() == 4
    meter.stop()
    passes(7)
    assert meter.lap() == 0


def test_the_measured_peak_is_a_rate_of_products():
    size = 512
    x = jax.numpy.ones((size, size))
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    start = time.perf_counter()
    for _ in range(20):
        product(x, x).block_until_ready()
    ordinary = 20 * 2 * size**3 / (time.perf_counter() - start)
    assert 0.2 < measured_peak("float32", size=size, repeats=20) / ordinary < 20


@pytest.mark.parametrize(
    ("kind", "known"), [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12)]
)
def test_a_known_device_has_the_peak_of_its_data_sheet(monkeypatch, kind, known):
    class Device:
        device_kind = kind

    monkeypatch.setattr(throughput.jax, "devices", lambda: [Device()] * 4)
    monkeypatch.setattr(throughput.jax, "device_count", lambda: 4)
    monkeypatch.setattr(throughput.jax, "default_backend", lambda: "tpu")
    assert peak_flops("bfloat16") == 4 * known


def test_a_step_needs_less_where_layers_are_frozen():
    kernel = jax.ShapeDtypeStruct((4, 4), "float32")
    params = {"embeddings": {"word": kernel}, "encoder": {"layers": {str(i): {"kernel": kernel} for i in range(4)}}}
    params["classifier"] = {"kernel": kernel}
    every = {"embeddings/word", "classifier/kernel", *(f"encoder/layers/{i}/kernel" for i in range(4))}
    assert training_flops(100, params, every) == 300
    assert training_flops(100, params, every - {"embeddings/word"}) == 300
    upper = {"classifier/kernel", "encoder/layers/2/kernel", "encoder/layers/3/kernel"}
    assert training_flops(100, params, upper) == 200, "back through two layers of four, for two kernels of four"
    assert training_flops(100, params, {"classifier/kernel"}) == 100
    adapters = {"lora/encoder/layers/0/kernel/a"}
    assert training_flops(100, params, adapters) == 200, "back through all of them, for no kernel"
