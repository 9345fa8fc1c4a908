"""What differs between TensorRT 10.3 to 11.x and TensorRT for RTX, as far as building goes, and nothing else.

`LIMITS` are options that only some versions serve; asking others for one is refused, since TensorRT for RTX takes most
of them and does nothing. Names of the Python API are from its bindings, tag by tag:
https://github.com/NVIDIA/TensorRT/blob/v10.3.0/python/src/infer/pyCore.cpp to `v11.1`; between those two tags nothing
that is used here was added or removed but what this module says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.support.versions import version_key

Flavour = Literal["tensorrt", "tensorrt-rtx"]

OLDEST_TENSORRT: Final = "10.3"
"""JetPack 6.1's; before 10.0 networks and plans are handled by calls that are not used here."""

HARDWARE_LEVELS: Final = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}
"""Members of `HardwareCompatibilityLevel`."""
VERBOSITIES: Final = {"detailed": "DETAILED", "layer-names": "LAYER_NAMES_ONLY", "none": "NONE"}
"""Members of `ProfilingVerbosity`."""


def needs_strong_flag(flavour: Flavour, version: str) -> bool:
    """Whether a network obeys the ONNX file's types only where it is created with `STRONGLY_TYPED`.

    TensorRT 10.x: yes. From 11.0 on every network is so and the flag is there for old callers only:
    https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x.html
    TensorRT for RTX: never. https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html
    """
    return flavour == "tensorrt" and version_key(version)[:1] < (11,)


def has_timing_cache(flavour: Flavour) -> bool:
    """Whether the builder times kernels, and can keep what it found.

    TensorRT for RTX times none; its timing cache is without effect, and deprecated since 1.2
    (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/timing-cache-migration.html).
    """
    return flavour == "tensorrt"


def require_new_enough(version: str) -> None:
    """Refuse TensorRT before `OLDEST_TENSORRT`.

    Args:
        version: such as "10.3.0"; one that cannot be read passes.

    Raises:
        MissingError: it is older.
    """
    if (known := version_key(version)) and known < version_key(OLDEST_TENSORRT):
        raise MissingError(
            f"TensorRT {version} cannot build this engine.",
            f"It is older than {OLDEST_TENSORRT}, the oldest that mde is written for.",
            "Jetson: install JetPack 6.1 or later; desktop: pip install --upgrade tensorrt",
        )


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An option that a flavour serves from some version on, or never."""

    option: str
    asked: Callable[[BuildConfig], bool]
    flavour: Flavour
    since: str | None
    """None: no version does."""
    integrated: bool | None = None
    """Of which GPUs that is said: True for a Jetson's, which shares the CPU's memory; None for all."""
    why: str
    link: str


LIMITS: Final = (
    Limit(
        option="--hardware-compat",
        asked=lambda config: config.hardware_compat != "none",
        flavour="tensorrt",
        since=None,
        integrated=True,
        why="NVIDIA does not support engines for other GPUs than their own on JetPack.",
        # The section Hardware Compatibility, of 8.6 (then in the developer guide) to 11.
        link="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html",
    ),
    Limit(
        option="--hardware-compat same-cc",
        asked=lambda config: config.hardware_compat == "same-cc",
        flavour="tensorrt",
        since="10.9",
        why="HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY came with TensorRT 10.9.",
        link="https://github.com/NVIDIA/TensorRT/blob/v10.9.0/python/src/infer/pyCore.cpp",
    ),
    Limit(
        option="--hardware-compat",
        asked=lambda config: config.hardware_compat != "none",
        flavour="tensorrt-rtx",
        since=None,
        why="Its engines run on every GPU that they are built for; it ignores the level, with a warning.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html",
    ),
    Limit(
        option="--version-compat",
        asked=lambda config: config.version_compat,
        flavour="tensorrt-rtx",
        since=None,
        why="It comes without the lean runtime (libnvinfer_lean.so.1) that such an engine carries.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html",
    ),
    Limit(
        option="--optimisation-level",
        asked=lambda config: config.optimisation_level is not None,
        flavour="tensorrt-rtx",
        since=None,
        why="Kernels are chosen on the GPU that runs the engine: at every level the engine is the same to the byte.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html",
    ),
    Limit(
        option="--weights stripped",
        asked=lambda config: config.weights == "stripped",
        flavour="tensorrt-rtx",
        since=None,
        why="Without a GPU its builder fails at engines whose weights can be put back (1.7.1); with one it is untried.",
        link="https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html",
    ),
)


def refuse_unsupported(config: BuildConfig, flavour: Flavour, version: str, *, integrated: bool = False) -> None:
    """Refuse what this builder would not do.

    Args:
        version: of the runtime, such as "10.3.0"; one that cannot be read serves what any version serves.
        integrated: whether it builds for a GPU that shares the CPU's memory, as a Jetson's.

    Raises:
        OptionError: naming the option.
    """
    for limit in LIMITS:
        if limit.flavour != flavour or limit.integrated not in (None, integrated) or not limit.asked(config):
            continue
        known, on = version_key(version), " on this GPU" if limit.integrated else ""
        if limit.since is None or (known and known < version_key(limit.since)):
            raise OptionError(
                f"{limit.option} is nothing that {flavour} {version} does{on}.".replace("  ", " "),
                f"{limit.why} See {limit.link}",
                f"Leave {limit.option} out.",
            )


def create_config(trt: Any, config: BuildConfig, flavour: Flavour, **more: Any) -> Any:
    """Polygraphy's loader of an `IBuilderConfig`.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`, whichever Polygraphy was told to use.
        more: further arguments of Polygraphy's `CreateConfig`, or of its `CreateConfigRTX`.
    """
    arguments: dict[str, Any] = {
        "profiling_verbosity": getattr(trt.ProfilingVerbosity, VERBOSITIES[config.verbosity]),
        "builder_optimization_level": config.optimisation_level,
        "version_compatible": config.version_compat,
        # Implies REFIT_IDENTICAL, under which an engine is as fast as a full one (NvInfer.h, BuilderFlag). Not REFIT:
        # with it 11.3 may drop a bias (https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/inference-library/
        # refitting-engines.html).
        "strip_plan": config.weights == "stripped",
        **more,
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

    # Builders and trtexec multiply FP32 in TF32 unless told otherwise; Polygraphy tells them otherwise.
    return CreateConfig(tf32=True, **arguments)
