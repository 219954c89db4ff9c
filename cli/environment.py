"""What must be set before JAX starts. Imported first by every command."""

import os
import warnings

# On the CPU, XLA's own loops beat the library that it hands fused element-wise code to by some 8 % of a training step.
if "ynn_fusion_type" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type="
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # JAX's C++ side tells of cache entries otherwise

import jax  # noqa: E402

from data.cache import cache_root  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def connect_hosts() -> None:
    """Joins the processes of a run on several hosts, if something tells of them; must come before anything is computed.

    Cloud TPU, SLURM, Open MPI and Kubernetes are found by JAX itself; elsewhere `JAX_COORDINATOR_ADDRESS` (HOST:PORT of
    the first process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say it.
    """
    count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX tells every single process in a Kubernetes pod what it would need
            jax.distributed.initialize(
                num_processes=int(count) if count else None, process_id=int(number) if number else None
            )
    except ValueError:  # a run of one process: nothing names a coordinator
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            raise
