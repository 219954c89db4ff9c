"""What must be set before JAX starts. Imported first by every command."""

import os

# On the CPU, XLA's own loops beat the library that it hands fused element-wise code to by some 8 % of a training step.
if "ynn_fusion_type" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type="
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # JAX's C++ side tells of cache entries otherwise

import jax  # noqa: E402

from data.cache import cache_root  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
