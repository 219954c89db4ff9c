"""Several devices give the losses of one, on any mesh."""

import json
import os
from pathlib import Path

import numpy as np
import pytest


def losses_of(run: Path) -> np.ndarray:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return np.array([record["loss"] for record in records])


MESHES = {
    "data 8": [],
    "fsdp 8": ["--config.mesh.data=1", "--config.mesh.fsdp=8"],
    "data 4, tensor 2": ["--config.mesh.tensor=2"],
    "data 2, fsdp 2, tensor 2": ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"],
}
ALL_THREE = pytest.param("data 2, fsdp 2, tensor 2", marks=pytest.mark.slow)


@pytest.mark.parametrize("mesh", [*list(MESHES)[:3], ALL_THREE])
def test_eight_devices_give_the_losses_of_one_on_any_mesh(one, several, tmp_path, mesh, command, simulated):
    """Dropout included: its masks belong to the elements of the whole batch, not to a device."""
    eight = tmp_path / "eight"
    done = command(*several, *MESHES[mesh], f"--workdir={eight}", env=os.environ | simulated(8))
    assert done.returncode == 0, done.stderr
    assert "8 × cpu" in done.stdout
    np.testing.assert_allclose(losses_of(one), losses_of(eight), rtol=1e-5)


def test_more_devices_than_heads_are_refused(smoke, tmp_path, command, simulated):
    words = ["--config.mesh.tensor=4", "--config.model.num_heads=2"]
    done = command(*smoke, *words, env=os.environ | simulated(8))
    assert done.returncode == 2 and "config.mesh.tensor: 4 does not divide 2 heads" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(smoke, tmp_path, command, simulated):
    done = command(*smoke, "--config.train.batch_size=12", env=os.environ | simulated(8))
    assert done.returncode == 2 and "batch_size" in done.stderr and "8 devices" in done.stderr
    assert not (tmp_path / "run").exists()
