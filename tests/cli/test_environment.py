import os
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
