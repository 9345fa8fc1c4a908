"""The `trtexec` command that builds the same engine as `mde build`.

The flags are those of trtexec's source, samples/common/sampleOptions.cpp of github.com/NVIDIA/TensorRT, at the tags
v10.3.0, v10.16 and v11.1. TensorRT 11 has no `--fp16`, `--int8` and `--best`, because every network is strongly typed,
and ignores `--stronglyTyped` (NVIDIA TensorRT documentation, "Migrating trtexec Usage from TensorRT 10.x to 11.x",
docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-trtexec.html). The types in the ONNX file
set the precision, so no flag is needed. TF32 is on, as in `mde build`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mirrordepth_edge.config import BuildConfig, TargetConfig
from mirrordepth_edge.engines.process import refuse_cpu_int8
from mirrordepth_edge.engines.versions import needs_strong_flag, refuse_unsupported
from mirrordepth_edge.engines.worker import profile_shapes
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.dynamic_shapes import resolve_sizes
from mirrordepth_edge.manifest import Manifest

HARDWARE_LEVELS: Final = {"ampere+": "ampere+", "same-cc": "sameComputeCapability"}
VERBOSITIES: Final = {"detailed": "detailed", "layer-names": "layer_names_only", "none": "none"}
SEPARATORS = ",'"
"""Characters that separate inputs in trtexec's arguments. A colon may be in a name: trtexec splits at the last one."""
VERSIONS: Final = {"TensorRT 10": "10.3", "TensorRT 11": "11.0"}
"""Major versions whose commands differ, each with its oldest supported version."""


def trtexec_commands(
    onnx: Path, plan: Path, manifest: Manifest, targets: Sequence[TargetConfig], config: BuildConfig
) -> str:
    """One command per major version, each after a comment with the version.

    Args:
        targets: as `load_targets` returns them; none is this machine.

    Raises:
        OptionError: a target does not use TensorRT, no version supports an option, or the input cannot have these
            sizes.
        InputError: the file is INT8 for a CPU.
    """
    if others := [target.name for target in targets if target.backend != "tensorrt"]:
        raise OptionError(
            f"trtexec cannot build for {', '.join(others)}.",
            "It is part of TensorRT and builds on the GPU that will run the engine.",
            "Remove --print-trtexec, or use --target here.",
        )
    refuse_cpu_int8(onnx, manifest)
    lines: list[str] = []
    refusals: list[OptionError] = []
    for name, version in VERSIONS.items():
        try:
            command = trtexec_command(onnx, plan, manifest, version=version, config=config)
        except OptionError as error:
            refusals.append(error)
            command = f"# {error.what} {error.why}"
        lines.append(f"# {name}\n{command}")
    if len(refusals) == len(lines):
        raise refusals[-1]
    return "\n".join(lines)


def trtexec_command(
    onnx: Path,
    plan: Path,
    manifest: Manifest,
    *,
    version: str,
    config: BuildConfig,
) -> str:
    """One command line for a POSIX shell, quoted.

    The command builds without measuring. It neither compares depth nor writes a manifest.

    Args:
        manifest: the ONNX file's.
        version: of trtexec's TensorRT, such as `10.3`.
        config: as for `build_engine`; its `timing_cache` is ignored.

    Raises:
        OptionError: this version does not support an option, or the input cannot have these sizes.
    """
    refuse_unsupported(config, "tensorrt", version)
    strong = ["--stronglyTyped"] if needs_strong_flag("tensorrt", version) else []
    flags = [*strong, *_flags(config), *_shapes(config, manifest)]
    return shlex.join(["trtexec", f"--onnx={onnx}", f"--saveEngine={plan}", *flags, "--skipInference"])


def _flags(config: BuildConfig) -> Iterator[str]:
    if config.workspace_gib is not None:
        # In bytes, because trtexec parses fractions in its own way.
        yield f"--memPoolSize=workspace:{int(config.workspace_gib * 2**30)}B"
    if config.optimisation_level is not None:
        yield f"--builderOptimizationLevel={config.optimisation_level}"
    yield f"--profilingVerbosity={VERBOSITIES[config.verbosity]}"
    if config.hardware_compat != "none":
        yield f"--hardwareCompatibilityLevel={HARDWARE_LEVELS[config.hardware_compat]}"
    if config.version_compat:
        yield "--versionCompatible"
    if config.weights == "stripped":
        yield "--stripWeights"


def _shapes(config: BuildConfig, manifest: Manifest) -> Iterator[str]:
    """Min, opt and max shapes of the inputs with dynamic axes."""
    sizes = resolve_sizes(config, manifest).dynamic
    if sizes is None:
        return
    inputs = [spec for spec in manifest.inputs if any(length < 0 for length in spec.shape)]
    if names := [spec.name for spec in inputs if any(mark in spec.name for mark in SEPARATORS)]:
        why = f"Its name contains one of {SEPARATORS}, which separate inputs."
        raise OptionError(f"trtexec cannot set shapes of the input {names[0]}.", why, "Rename it in the ONNX file.")
    profiles = {spec.name: profile_shapes(spec.shape, spec.layout, sizes) for spec in inputs}
    for index, flag in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
        shapes = (f"{name}:{'x'.join(map(str, bounds[index]))}" for name, bounds in profiles.items())
        yield f"{flag}={','.join(shapes)}"
