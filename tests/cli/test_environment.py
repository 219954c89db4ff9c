import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli import environment

ROOT = Path(environment.__file__).parent.parent


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What the command's process is replaced with when `script` is run where the kernel says `pages`."""

    def start(script: Path, pages: str, **variables):
        (tmp_path / "enabled").write_text(pages)
        monkeypatch.setattr(environment, "HUGE_PAGES", tmp_path / "enabled")
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
        monkeypatch.setattr(sys, "orig_argv", ["python", "-O", str(script), "--workdir=x"])
        monkeypatch.setenv("GLIBC_TUNABLES", "")  # so that it is put back as it was
        monkeypatch.delenv("GLIBC_TUNABLES")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        calls = []
        monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
        environment._use_huge_pages()
        return calls

    return start


def test_a_command_starts_again_once_with_huge_pages(started):
    script = ROOT / "train.py"
    assert started(script, "always [madvise] never") == [
        (sys.executable, [sys.executable, "-O", str(script), "--workdir=x"])
    ]
    assert "hugetlb=1" in os.environ["GLIBC_TUNABLES"]
    assert started(script, "always [madvise] never", GLIBC_TUNABLES=os.environ["GLIBC_TUNABLES"]) == []


@pytest.mark.parametrize(
    ("script", "pages"),
    [
        (ROOT / "train.py", "[always] madvise never"),
        (ROOT / "train.py", "always madvise [never]"),
        (Path("/usr/lib/python3/pytest.py"), "always [madvise] never"),
    ],
)
def test_nothing_starts_again_where_it_would_not_help_or_the_process_is_not_ours(started, script, pages):
    assert started(script, pages) == []
    assert "GLIBC_TUNABLES" not in os.environ


def join(*, patience: float, **variables: str) -> subprocess.CompletedProcess:
    """A process of a run on several hosts that waits for the others."""
    program = "from cli import commandline, environment; "
    program += f"commandline.run(lambda argv: environment.connect_hosts({patience}) or 0)"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("number", ["0", "1"])
def test_a_process_whose_others_do_not_come_ends_with_status_2_and_says_so(number):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": number}
    done = join(patience=2, **told)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith(f"the coordinator: localhost:{port}: not all processes have come together")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "told",
    [
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"},
    ],
)
def test_half_said_or_misspelt_hosts_are_refused(told):
    done = join(patience=20, **told)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3 and "JAX_NUM_PROCESSES" in done.stderr


@pytest.mark.parametrize(
    ("given", "kept"),
    [("", "LIBRARY_FUSION_TYPE_REDUCE"), ("--xla_cpu_experimental_ynn_fusion_type=", "")],
    ids=["not set", "set by the user"],
)
def test_xla_leaves_sums_over_rows_to_its_library_unless_the_user_says_otherwise(given, kept):
    program = "import os; from cli import environment; print(os.environ['XLA_FLAGS'])"
    variables = os.environ | {"XLA_FLAGS": given}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    flags = [flag.partition("=") for flag in done.stdout.split()]
    assert [value for name, _, value in flags if name == "--xla_cpu_experimental_ynn_fusion_type"] == [kept]
    assert ("--xla_cpu_copy_insertion_use_region_analysis", "=", "true") in flags
