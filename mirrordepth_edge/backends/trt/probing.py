"""Check whether a TensorRT flavour can run engines on this machine."""

from __future__ import annotations

from collections.abc import Collection

from mirrordepth_edge.backends.base import Available, Probe, import_checked
from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt.vendor import PACKAGES, TITLES, USE_TENSORRT, Flavour, how_to_install, import_runtime
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.machine.unavailable import Cause, Unavailable


def probe_runtime(
    flavour: Flavour, *, without_gpu: Unavailable, compute_capabilities: Collection[str] | None = None
) -> Probe:
    """Check the package, the GPU and cuda-python; never raises.

    Args:
        without_gpu: result on a machine without an NVIDIA GPU.
        compute_capabilities: supported GPUs; None for all.
    """
    install = how_to_install(flavour)
    version = import_checked(
        (PACKAGES[flavour],), lambda: str(import_runtime(flavour).__version__), install=install, repair=install
    )
    if isinstance(version, Unavailable):
        return version
    gpus = nvidia_gpus()
    if not gpus:
        return without_gpu
    gpu = gpus[0]  # sessions run on the first one
    if compute_capabilities is not None and gpu.compute_capability not in compute_capabilities:
        reason = f"{TITLES[flavour]} does not support {gpu.name} (compute capability {gpu.compute_capability})"
        return Unavailable(reason=reason, cure=USE_TENSORRT, cause=Cause.GPU_NOT_SUPPORTED)
    if problem := cuda.too_new(gpu):
        return Unavailable(reason=problem, cure=cuda.install(gpu), cause=Cause.CUDA_PYTHON)
    try:
        cuda.runtime()
    except MissingError as error:
        return Unavailable(reason=error.what, cure=error.cure, cause=Cause.CUDA_PYTHON)
    except Exception as error:
        cure = "pip install --force-reinstall cuda-python"
        return Unavailable(reason=f"import cuda: {error!r}", cure=cure, cause=Cause.CUDA_PYTHON)
    return Available(version=version, devices=(gpu.name,))
