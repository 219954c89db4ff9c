"""What must be set before JAX starts. Imported first by every command."""

import os
import sys
import threading
import warnings
from pathlib import Path

from data.cache import cache_root
from errors import UserError

ANSWER = 120  # seconds that the processes of a run on several hosts wait for each other at the start
SILENCE = 60  # seconds without a sign of life after which a process of a run on several hosts counts as dead
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _use_huge_pages() -> None:
    """Starts the command's process once more, with an allocator that asks for large pages and keeps them.

    XLA takes and gives back all memory of a step each time. In pages of 4 KiB that costs a sixth of a step on two
    cores; glibc can do better, but reads how only when a process starts.
    """
    own = Path(__file__).parent.parent
    command = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent
    if command not in (own, own / "benchmarks") or "GLIBC_TUNABLES" in os.environ:
        return
    if HUGE_PAGES.is_file() and "[madvise]" in HUGE_PAGES.read_text():  # else all memory has them, or none may
        keep = f"glibc.malloc.mmap_threshold={2**32}:glibc.malloc.trim_threshold={2**33}"
        os.environ["GLIBC_TUNABLES"] = f"glibc.malloc.hugetlb=1:{keep}"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_use_huge_pages()

# On the CPU, XLA's own loops beat the library that it hands fused element-wise code to by some 8 % of a training step,
# while sums and maxima over rows are the library's to do: another 3 to 5 %. And with the finer analysis XLA updates
# moments in their place, where else it would copy the large ones first.
FLAGS = (
    "xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_copy_insertion_use_region_analysis=true",
)
for flag in FLAGS:
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # JAX's C++ side tells of cache entries otherwise

import jax  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def connect_hosts(patience: float = ANSWER) -> None:
    """Joins the processes of a run on several hosts, if something tells of them; must come before anything is computed.

    Cloud TPU, SLURM, Open MPI and Kubernetes are found by JAX itself; elsewhere `JAX_COORDINATOR_ADDRESS` (HOST:PORT of
    the first process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say it. A process that cannot join the others ends with
    status 2 after `patience` seconds.

    Raises:
        UserError: one of these variables is no number.
    """
    numbers = {name: os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    for name, value in numbers.items():
        if value and not value.isdecimal():
            raise UserError(name, repr(value), "Give a whole number.")
    count, number = (int(value) if value else None for value in numbers.values())
    # JAX would end the process with a signal and a page of C++.
    waiting = threading.Timer(patience, _give_up)
    waiting.daemon = True
    waiting.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX tells every single process in a Kubernetes pod what it would need
            jax.distributed.initialize(
                num_processes=count,
                process_id=number,
                initialization_timeout=round(patience) + 60,
                heartbeat_timeout_seconds=SILENCE,
                shutdown_timeout_seconds=SILENCE,
            )
    except ValueError as error:  # a run of one process: nothing names a coordinator
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            names = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
            raise UserError(names, str(error), "Set all three, in every process.") from error
    finally:
        waiting.cancel()


def _give_up() -> None:
    where = os.environ.get("JAX_COORDINATOR_ADDRESS", "found by JAX itself")
    mend = "Start every process, and let JAX_COORDINATOR_ADDRESS name a port of the first that the others can reach."
    print(UserError("the coordinator", f"{where}: not all processes have come together", mend), file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)
