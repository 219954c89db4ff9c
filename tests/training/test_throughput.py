import time

import jax
import pytest

from training import throughput
from training.throughput import Meter, measured_peak, peak_flops


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
