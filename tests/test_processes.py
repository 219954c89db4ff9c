"""Several processes, as on several hosts: the losses of one, checkpoints that go from one to the other, no hanging."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
from training.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent
ENDLESS = ["--config.train.steps=1000000", "--config.train.eval_every=0"]


def losses_of(run: Path) -> np.ndarray:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return np.array([record["loss"] for record in records])


def start_two(words: list[str], second: list[str] | None = None, **variables: str) -> list[subprocess.Popen]:
    """A run of two processes, as on two hosts; the second perhaps with other words."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        subprocess.Popen(
            [sys.executable, *(words if number == 0 or second is None else second)],
            cwd=ROOT,
            env=os.environ | told | {"JAX_PROCESS_ID": str(number)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def wait_for(checkpoints: Checkpoints, count: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while len(checkpoints.steps()) < count and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.01)


@pytest.fixture
def two(smoke, tmp_path):
    """Two processes that train without an end and have saved twice, and where they save."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    processes = start_two([*smoke, *ENDLESS])
    wait_for(checkpoints, 2, processes)
    yield processes, checkpoints
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def moved(one, tmp_path) -> Path:
    """The run on one device as it was at step 10."""
    shutil.copytree(one, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "20")
    return tmp_path / "moved"


def test_a_run_of_one_device_goes_on_with_eight_and_gives_the_same_losses(one, several, moved, command, simulated):
    words = [*several, "--config.mesh.data=2", "--config.mesh.fsdp=4", f"--workdir={moved}"]
    done = command(*words, env=os.environ | simulated(8))
    assert done.returncode == 0 and "goes on at step 10" in done.stdout, done.stderr
    np.testing.assert_allclose(losses_of(one), losses_of(moved), rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_two_processes_and_then_with_one_and_gives_the_same_losses(one, several, moved):
    processes = start_two([*several, f"--workdir={moved}"])
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error for _, error in outputs)
    assert "goes on at step 10" in outputs[0][0]
    np.testing.assert_allclose(losses_of(one), losses_of(moved), rtol=1e-5)
    shutil.rmtree(moved / "checkpoints" / "20")
    assert train.main([*several, f"--workdir={moved}"]) == 0
    np.testing.assert_allclose(losses_of(one), losses_of(moved), rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "mesh"),
    [(1, []), pytest.param(4, ["--config.mesh.data=1", "--config.mesh.fsdp=8"], marks=pytest.mark.slow)],
)
def test_two_processes_as_on_two_hosts_give_the_losses_of_one_and_only_the_first_writes(
    one, several, tmp_path, count, mesh, simulated
):
    two = tmp_path / "two"
    processes = start_two([*several, *mesh, f"--workdir={two}"], **simulated(count))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error for _, error in outputs)
    assert f"{2 * count} × cpu" in outputs[0][0] and "step" not in outputs[1][0]
    np.testing.assert_allclose(losses_of(one), losses_of(two), rtol=1e-5)
    assert Checkpoints(two / "checkpoints").steps() == [10, 20]


def test_processes_that_were_asked_for_different_things_are_refused_with_what_differs(smoke, tmp_path):
    processes = start_two(smoke, [*smoke, "--config.optimizer.learning_rate=0.5"])
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], told
    assert all("optimizer.learning_rate 0.002 in process 0, 0.5 in 1" in lines for lines in told), told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_of_two_processes_dies_the_other_ends_too_and_what_was_saved_is_whole(two, dies):
    processes, checkpoints = two
    processes[dies].kill()
    processes[1 - dies].communicate(timeout=60)
    assert processes[1 - dies].returncode not in (0, None)
    assert checkpoints.newest_whole(print) in checkpoints.steps()[-2:]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, [143, 143]), pytest.param(signal.SIGINT, [143, 130], marks=pytest.mark.slow)],
)
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step_saved(two, number, expected):
    processes, checkpoints = two
    processes[1].send_signal(number)
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == expected, told
    newest = checkpoints.newest_whole(print)
    assert all(f"at step {newest}, saved" in lines for lines in told), told
