"""The `trtexec` command that builds what `mde build` builds, for those whose pipeline is made of such commands.

Each flag was looked up in trtexec's own source, samples/common/sampleOptions.cpp of github.com/NVIDIA/TensorRT, at the
tags v10.3.0, v10.16 and v11.1. What changed between the two majors (NVIDIA TensorRT documentation, "Migrating trtexec
Usage from TensorRT 10.x to 11.x", docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/
tensorrt-10x-to-11x-trtexec.html): 11 has no `--fp16`, `--int8` or `--best`, since every network is strongly typed;
`--stronglyTyped` is still taken there, but does nothing. Files of `mde export` carry their precision in their own
types, so that no flag has to name it, and none may change it. TF32 is on in trtexec as it is in `mde build`.
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
MARKS = ",'"
"""By which trtexec tells inputs apart, so that no name may have them; a colon may, for it takes the last one."""


VERSIONS: Final = {"TensorRT 10": "10.3", "TensorRT 11": "11.0"}
"""Majors whose commands differ, each with its oldest version that is supported."""


def trtexec_commands(
    onnx: Path, plan: Path, manifest: Manifest, targets: Sequence[TargetConfig], config: BuildConfig
) -> str:
    """A line a major version, under a comment that names it.

    Args:
        targets: as `load_targets` gives them; none is this machine.

    Raises:
        OptionError: a target has no TensorRT, no version has an option, or the input cannot be given sizes.
        InputError: the file is INT8 for a CPU.
    """
    if others := [target.name for target in targets if target.backend != "tensorrt"]:
        raise OptionError(
            f"trtexec builds nothing for {', '.join(others)}.",
            "It is TensorRT's own, and builds on the GPU that will run the engine.",
            "Leave --print-trtexec out, or name the machine it will run on: --target here",
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
    config: BuildConfig | None = None,
    timing_cache: Path | None = None,
    program: str = "trtexec",
) -> str:
    """One line for a POSIX shell, every part quoted as far as it needs to be.

    It builds and does not measure, as `mde build`; but it does not compare depth, and writes no manifest.

    Args:
        manifest: the ONNX file's, which has its inputs.
        version: of the TensorRT that trtexec came with, such as `10.3`.
        config: as `build_engine` takes it; its `timing_cache` is left to the argument of that name.
        timing_cache: a file that keeps kernels' timings for the next build; none where None.
        program: JetPack has it at /usr/src/tensorrt/bin/trtexec, which is not on PATH.

    Raises:
        OptionError: this version does not have an option, or the input cannot be given sizes.
    """
    config = config or BuildConfig()
    refuse_unsupported(config, "tensorrt", version)
    strong = ["--stronglyTyped"] if needs_strong_flag("tensorrt", version) else []
    flags = [*strong, *_flags(config, timing_cache), *_shapes(config, manifest)]
    return shlex.join([program, f"--onnx={onnx}", f"--saveEngine={plan}", *flags, "--skipInference"])


def _flags(config: BuildConfig, timing_cache: Path | None) -> Iterator[str]:
    if config.workspace_gib is not None:
        # In bytes: trtexec takes fractions too, and reads them in its own way.
        yield f"--memPoolSize=workspace:{int(config.workspace_gib * 2**30)}B"
    if config.optimisation_level is not None:
        yield f"--builderOptimizationLevel={config.optimisation_level}"
    if timing_cache is not None:
        yield f"--timingCacheFile={timing_cache}"
    yield f"--profilingVerbosity={VERBOSITIES[config.verbosity]}"
    if config.hardware_compat != "none":
        yield f"--hardwareCompatibilityLevel={HARDWARE_LEVELS[config.hardware_compat]}"
    if config.version_compat:
        yield "--versionCompatible"
    if config.weights == "stripped":
        yield "--stripWeights"


def _shapes(config: BuildConfig, manifest: Manifest) -> Iterator[str]:
    """Bounds of the input whose sizes are open."""
    sizes = resolve_sizes(config, manifest).dynamic
    if sizes is None:
        return
    opened = [spec for spec in manifest.inputs if any(length < 0 for length in spec.shape)]
    if names := [spec.name for spec in opened if any(mark in spec.name for mark in MARKS)]:
        why = f"Its name has one of {MARKS}, by which trtexec tells inputs apart."
        raise OptionError(f"trtexec takes no shapes for the input {names[0]}.", why, "Rename it in the ONNX file.")
    bounds = {spec.name: profile_shapes(spec.shape, spec.layout, sizes) for spec in opened}
    for place, flag in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
        yield f"{flag}={','.join(f'{name}:' + 'x'.join(map(str, each[place])) for name, each in bounds.items())}"
