"""XLA's compilers for TPU and GPU, for four devices that are not there."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud what machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile at the same time
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Of the plugins, which read it when they are loaded."""

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The data sheet of an H100 (SXM), as XLA takes it."""


def devices(target: str) -> list[Any]:
    """Four devices that are not there."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if target == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    return topologies.get_topology_desc(platform="cuda", topology="1x1x4", target_config=H100).devices


def compiled(target: str, lowered: Any) -> tuple[Any, str, str]:
    """The executable; a mark where it was not made with the default options; on GPU, XLA's list of what is launched."""
    if target == "tpu":
        return lowered.compile(), "", ""
    with tempfile.TemporaryDirectory() as folder:
        options, mark = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}, ""
        try:
            made = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            # Without measuring, XLA takes tiles for some products of Triton's that it then cannot use.
            if "output tile sizes" not in str(error):
                raise
            made, mark = lowered.compile(compiler_options=options | {"xla_gpu_enable_triton_gemm": False}), " (cuBLAS)"
        *_, path = sorted(Path(folder).glob("*.thunk_sequence*.txt"), key=lambda path: len(path.name))  # after passes
        return made, mark, path.read_text()
