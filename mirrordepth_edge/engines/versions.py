"""Differences between TensorRT 10.3 to 11.x and TensorRT for RTX that matter when building.

`LIMITS` lists the options that only some versions support. They are refused elsewhere, because TensorRT for RTX accepts
most of them without any effect. Names of the Python API are those of its bindings, from tag v10.3.0
(https://github.com/NVIDIA/TensorRT/blob/v10.3.0/python/src/infer/pyCore.cpp) to tag v11.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mirrordepth_edge.backends.trt.vendor import Flavour as Flavour
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.support.versions import version_key

OLDEST_TENSORRT: Final = "10.3"
"""The version of JetPack 6.1. Before 10.0 the API for networks and plans was different."""

HARDWARE_LEVELS: Final = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}
"""Members of `HardwareCompatibilityLevel`."""
VERBOSITIES: Final = {"detailed": "DETAILED", "layer-names": "LAYER_NAMES_ONLY", "none": "NONE"}
"""Members of `ProfilingVerbosity`."""


def needs_strong_flag(flavour: Flavour, version: str) -> bool:
    """Whether a network keeps the ONNX file's types only if it is created with `STRONGLY_TYPED`.

    TensorRT 10.x: yes. From 11.0 on every network is strongly typed and the flag has no effect:
    https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x.html
    TensorRT for RTX: no. https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html
    """
    return flavour == "tensorrt" and version_key(version)[:1] < (11,)


def has_timing_cache(flavour: Flavour) -> bool:
    """Whether the builder times kernels and can store the timings.

    TensorRT for RTX does not; its timing cache has no effect and is deprecated since 1.2
    (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/timing-cache-migration.html).
    """
    return flavour == "tensorrt"


def require_new_enough(version: str) -> None:
    """Refuse TensorRT before `OLDEST_TENSORRT`.

    Args:
        version: such as "10.3.0"; a version that cannot be parsed is accepted.

    Raises:
        MissingError: it is older.
    """
    if (known := version_key(version)) and known < version_key(OLDEST_TENSORRT):
        raise MissingError(
            f"TensorRT {version} cannot build this engine.",
            f"The oldest supported version is {OLDEST_TENSORRT}.",
            "Jetson: install JetPack 6.1 or later; desktop: pip install --upgrade tensorrt",
        )


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An option that only some versions of a builder support, or none."""

    option: str
    is_set: Callable[[BuildConfig], bool]
    flavour: Flavour
    why: str
    link: str
    since: str | None = None
    """Oldest version that supports it; None if none does."""
    integrated: bool | None = None
    """GPUs that the limit applies to: True for a Jetson's, which shares the CPU's memory; None for all."""


LIMITS: Final = (
    Limit(
        option="--hardware-compat",
        is_set=lambda config: config.hardware_compat != "none",
        flavour="tensorrt",
        integrated=True,
        why="On JetPack, NVIDIA supports engines only on the GPU that they were built on.",
        # Section Hardware Compatibility, unchanged from 8.6 (then in the developer guide) to 11.
        link="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html",
    ),
    Limit(
        option="--hardware-compat same-cc",
        is_set=lambda config: config.hardware_compat == "same-cc",
        flavour="tensorrt",
        since="10.9",
        why="HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY came with TensorRT 10.9.",
        link="https://github.com/NVIDIA/TensorRT/blob/v10.9.0/python/src/infer/pyCore.cpp",
    ),
    Limit(
        option="--hardware-compat",
        is_set=lambda config: config.hardware_compat != "none",
        flavour="tensorrt-rtx",
        why="Its engines run on every GPU that they are built for; it ignores the level and logs a warning.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html",
    ),
    Limit(
        option="--version-compat",
        is_set=lambda config: config.version_compat,
        flavour="tensorrt-rtx",
        why="It does not include the lean runtime (libnvinfer_lean.so.1) that such an engine contains.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html",
    ),
    Limit(
        option="--optimisation-level",
        is_set=lambda config: config.optimisation_level is not None,
        flavour="tensorrt-rtx",
        why="Kernels are chosen on the GPU that runs the engine: engines of all levels are identical.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html",
    ),
    Limit(
        option="--weights stripped",
        is_set=lambda config: config.weights == "stripped",
        flavour="tensorrt-rtx",
        why="Without a GPU, version 1.7.1 fails to build refittable engines; with a GPU it is untested.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html",
    ),
)


def refuse_unsupported(config: BuildConfig, flavour: Flavour, version: str, *, integrated: bool = False) -> None:
    """Refuse options that the builder does not support.

    Args:
        version: of the builder, such as "10.3.0". One that cannot be parsed supports what any version supports.
        integrated: whether the engine is for a GPU that shares the CPU's memory, such as a Jetson's.

    Raises:
        OptionError: an option is not supported.
    """
    for limit in LIMITS:
        if limit.flavour != flavour or limit.integrated not in (None, integrated) or not limit.is_set(config):
            continue
        known, where = version_key(version), " on this GPU" if limit.integrated else ""
        if limit.since is None or (known and known < version_key(limit.since)):
            raise OptionError(
                f"{f'{flavour} {version}'.strip()} does not support {limit.option}{where}.",
                f"{limit.why} See {limit.link}",
                f"Remove {limit.option}.",
            )


def create_config(trt: Any, config: BuildConfig, flavour: Flavour, **options: Any) -> Any:
    """Create Polygraphy's loader of an `IBuilderConfig`.

    Args:
        trt: the module that Polygraphy uses, `tensorrt` or `tensorrt_rtx`.
        options: further arguments of Polygraphy's `CreateConfig` or `CreateConfigRTX`.
    """
    arguments: dict[str, Any] = {
        "profiling_verbosity": getattr(trt.ProfilingVerbosity, VERBOSITIES[config.verbosity]),
        "builder_optimization_level": config.optimisation_level,
        "version_compatible": config.version_compat,
        # Implies REFIT_IDENTICAL, with which an engine is as fast as a full one (NvInfer.h, BuilderFlag). Not REFIT:
        # with it, 11.3 may drop a bias (https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/inference-library/
        # refitting-engines.html).
        "strip_plan": config.weights == "stripped",
        **options,
    }
    if config.workspace_gib is not None:
        limit = int(config.workspace_gib * 2**30)
        arguments["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: limit}
    if config.hardware_compat != "none":
        level = HARDWARE_LEVELS[config.hardware_compat]
        arguments["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if flavour == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        return CreateConfigRTX(**arguments)
    from polygraphy.backend.trt import CreateConfig

    # TF32 is on by default in TensorRT and trtexec, but off in Polygraphy.
    return CreateConfig(tf32=True, **arguments)
