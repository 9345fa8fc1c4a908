"""Build engines from ONNX files: TensorRT on the target itself, TensorRT for RTX ahead of time on any machine."""

from __future__ import annotations

import platform
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirrordepth_edge.artefact import PLAN_SUFFIXES, Artefact, reference_path
from mirrordepth_edge.backends.registry import backend
from mirrordepth_edge.backends.trt.tensorrt_rtx import COMPUTE_CAPABILITIES
from mirrordepth_edge.backends.trt.vendor import INSTALL, import_runtime
from mirrordepth_edge.config import BuildConfig, Precision, SessionOptions, TargetConfig
from mirrordepth_edge.engines import timing_cache
from mirrordepth_edge.engines.process import OnProgress, refuse_cpu_int8, run_builder
from mirrordepth_edge.engines.versions import Flavour, has_timing_cache, refuse_unsupported, require_new_enough
from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.export.dynamic_shapes import manifest_for_sizes, options_per_size, resolve_sizes
from mirrordepth_edge.export.parity import measure_engine_parity, worst_parity
from mirrordepth_edge.export.verify import require_repeatable
from mirrordepth_edge.machine.device import installed_versions, jetson_model, nvidia_gpus
from mirrordepth_edge.machine.driver import driver_version
from mirrordepth_edge.machine.known_issues import KnownIssue, known_issues
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import EngineInfo, Manifest, Parity, write_artefact
from mirrordepth_edge.recipes import load_target, recipe_names
from mirrordepth_edge.support.files import atomic_write, ensure_folder, require_suffix, sha256_of

HERE = "here"
RTX_TARGETS = ("rtx-ampere", "rtx-ada", "rtx-blackwell")


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What to build, decided before anything slow starts."""

    flavour: Flavour
    compute_capabilities: tuple[str, ...]
    """GPUs the engine will run on."""
    runs_here: bool
    """Whether this machine's first GPU, which runs engines, is one of them. Such an engine is verified before it is
    written."""
    version: str = ""
    """Of the builder; empty if it is unknown."""


def load_targets(text: str) -> tuple[TargetConfig, ...]:
    """Load the recipes of `--target`, separated by commas; none for `here`.

    Raises:
        OptionError: a name is unknown.
    """
    return () if text == HERE else tuple(load_target(name.strip()) for name in text.split(","))


def plan_build(target: str | None) -> BuildPlan:
    """Decide the flavour and the GPUs.

    Args:
        target: see `load_targets`. None is this machine's GPU, with TensorRT or else TensorRT for
            RTX; without a GPU, every RTX target.

    Raises:
        OptionError: the targets are unknown, include a CPU, or cannot share one engine.
        MissingError: the engine cannot be built on this machine; the cure says where and how.
    """
    names = target or HERE
    # On Arm there is no TensorRT for RTX: "here" then explains that no GPU is visible.
    if target is None and not nvidia_gpus() and platform.machine() != "aarch64":
        names = ",".join(RTX_TARGETS)
    targets = load_targets(names)
    if not targets:
        return _plan_here()
    flavours = {target.backend for target in targets}
    capabilities = tuple(dict.fromkeys(cc for target in targets for cc in target.compute_capabilities))
    if flavours == {"onnxruntime"}:
        raise OptionError(
            f"--target {names} needs no engine.",
            "A CPU runs the ONNX file itself, with ONNX Runtime.",
            "Use the .onnx file with mde run or mde bench. To build an engine: --target "
            + " | ".join(_engine_targets()),
        )
    if flavours == {"tensorrt-rtx"}:
        return _plan_rtx(capabilities)
    if flavours == {"tensorrt"} and len(targets) == 1:
        return _plan_here(targets[0])
    raise OptionError(
        f"No single engine supports {names}.",
        "Only RTX targets can share an engine.",
        "Build for one target at a time.",
    )


def _engine_targets() -> list[str]:
    return [HERE, *(name for name in recipe_names("export") if name != "cpu")]


def _plan_here(target: TargetConfig | None = None) -> BuildPlan:
    """Plan an engine for this machine, which must be `target` if that is given."""
    gpus = nvidia_gpus()
    if not gpus:
        raise MissingError(
            f"A TensorRT engine for {target.name if target else 'this machine'} cannot be built here: there is no "
            "NVIDIA GPU.",
            "TensorRT builds on the GPU that will run the engine.",
            "Copy the .onnx and its .manifest.json to the target and run there: mde build model.onnx "
            "(TensorRT for RTX can build here: --target rtx-ada)",
        )
    capability = gpus[0].compute_capability
    if target is None and find_spec("tensorrt") is None and capability in COMPUTE_CAPABILITIES:
        return _plan_rtx((capability,))
    version = str(getattr(import_runtime("tensorrt"), "__version__", ""))
    require_new_enough(version)
    if target is not None and capability not in target.compute_capabilities:
        raise MissingError(
            f"This machine is not a {target.name}.",
            f"Its GPU has compute capability {capability}, the target {', '.join(target.compute_capabilities)}.",
            f"Build on the target, or for this machine: --target {HERE}",
        )
    return BuildPlan(flavour="tensorrt", compute_capabilities=(capability,), runs_here=True, version=version)


def _plan_rtx(capabilities: tuple[str, ...]) -> BuildPlan:
    if find_spec("tensorrt_rtx") is None:
        raise MissingError(
            f"An engine for compute capability {', '.join(capabilities)} needs TensorRT for RTX.",
            "The package tensorrt-rtx is not installed (available for x86-64 Linux and Windows).",
            INSTALL["tensorrt-rtx"],
        )
    if unknown := sorted(set(capabilities) - set(COMPUTE_CAPABILITIES)):
        raise OptionError(
            f"TensorRT for RTX does not support compute capability {', '.join(unknown)}.",
            f"It supports {', '.join(COMPUTE_CAPABILITIES)}.",
            "Build with TensorRT on that GPU: mde build model.onnx --target here",
        )
    gpus = nvidia_gpus()
    runs_here = bool(gpus) and gpus[0].compute_capability in capabilities
    version = installed_versions(["tensorrt-rtx"]).get("tensorrt-rtx", "")
    return BuildPlan(flavour="tensorrt-rtx", compute_capabilities=capabilities, runs_here=runs_here, version=version)


def problems_of(plan: BuildPlan, precision: Precision) -> tuple[KnownIssue, ...]:
    """Known issues of such engines, the worst first."""
    by_gpu = (known_issues(plan.flavour, plan.version, cc, precision=precision) for cc in plan.compute_capabilities)
    return tuple({problem.id: problem for problems in by_gpu for problem in problems}.values())


def build_engine(
    onnx: Artefact,
    output: Path,
    plan: BuildPlan,
    config: BuildConfig | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Build an engine and write it with its manifest.

    An engine for this machine's GPU is compared with ONNX Runtime before it is written, at the min, opt and max of its
    sizes: known TensorRT releases build engines that are fast and wrong.

    Args:
        config: the builder's defaults where None.
        on_progress: called on this thread; an exception that it raises ends the builder.

    Raises:
        InputError: the file is not ONNX, the parser or builder refused it, or a file cannot be written.
        OptionError: the builder does not support an option, or it does not fit the file.
        MissingError: the engine is for this machine's GPU but cannot run on it; nothing was built.
        DeviceError: memory ran out.
        GateError: the engine's depth differs from the ONNX file's, or from run to run; nothing is written.
    """
    require_suffix(output, PLAN_SUFFIXES, "an engine")
    source = onnx.manifest
    refuse_cpu_int8(onnx.path, source)
    config = resolve_sizes(config or BuildConfig(), source)
    integrated = plan.runs_here and any(gpu.integrated for gpu in nvidia_gpus()[:1])
    refuse_unsupported(config, plan.flavour, plan.version, integrated=integrated)
    if plan.runs_here:
        _require_runtime(plan.flavour)
    ensure_folder(output.parent)
    # In a temporary folder: no engine is at `output` before its depth has been compared.
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "engine.plan"
        result = _build(onnx, built, plan, config, on_progress)
        manifest = replace(
            manifest_for_sizes(source, config.dynamic),
            kind="plan",
            artefact_sha256=sha256_of(built),
            parent_sha256=onnx.sha256,
            engine=_engine_info(plan, config, result),
        )
        if plan.runs_here:
            if config.weights == "stripped":
                _place_weights(built, onnx.path)
            manifest = replace(manifest, parity=_verify(built, manifest, onnx, output.name))
        _write(output, built, manifest, reference_path(onnx.path))
    return manifest


def _build(
    onnx: Artefact,
    built: Path,
    plan: BuildPlan,
    config: BuildConfig,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Run the builder with the stored timings of this GPU, and store what it timed.

    Args:
        built: the plan to write.

    Returns:
        As `run_builder`.
    """
    timings = built.with_name("timing.cache")
    stored = _timing_cache(plan) if config.timing_cache else None
    request = {
        "onnx": str(onnx.path.resolve()),
        "plan": str(built),
        "flavour": plan.flavour,
        "compute_capabilities": plan.compute_capabilities,
        "config": asdict(config),
        "layouts": {spec.name: spec.layout for spec in onnx.manifest.inputs},
        "timing_cache": None if stored is None else str(timings),
    }
    if stored is not None:
        timing_cache.load(stored, timings)
    result = run_builder(request, config, on_progress)
    if stored is not None:
        timing_cache.save(timings, stored)
    return result


def _write(output: Path, built: Path, manifest: Manifest, reference: Path) -> None:
    """Write the engine, its manifest and, if there is one, the reference of its ONNX file."""
    with ExitStack() as stack:  # the reference moves into place after the plan, if that could be written
        if reference.is_file():
            shutil.copyfile(reference, stack.enter_context(atomic_write(reference_path(output))))
        write_artefact(output, built.read_bytes(), manifest)


def is_verified(manifest: Manifest) -> bool:
    """Whether an engine was run before it was written. If not, its parity is that of the ONNX file."""
    return manifest.engine is not None and manifest.parity.backend == manifest.engine.flavour


def _require_runtime(flavour: Flavour) -> None:
    """Refuse, before minutes of building, an engine that could not be verified afterwards.

    Raises:
        MissingError: engines do not run here.
    """
    probe = backend(flavour).probe()
    if isinstance(probe, Unavailable):
        raise MissingError(
            f"{flavour} could not run the engine on this machine, so it is not built.",
            f"An engine is compared with its ONNX file before it is written; {probe.reason.rstrip('.')}.",
            probe.cure,
        )


def _place_weights(built: Path, onnx_path: Path) -> None:
    """Put the ONNX file beside a weight-stripped engine, where its weights are loaded from."""
    weights = built.with_suffix(".onnx")
    try:
        weights.symlink_to(onnx_path.resolve())
    except OSError:  # on Windows only administrators may
        shutil.copyfile(onnx_path, weights)


def _timing_cache(plan: BuildPlan) -> Path | None:
    """The stored timings of this machine's GPU; None if the builder does not time kernels."""
    gpus = nvidia_gpus()
    if not (gpus and plan.runs_here and has_timing_cache(plan.flavour)):
        return None
    return timing_cache.timing_cache_path(gpus[0], plan.flavour, plan.version, str(driver_version(gpus[0])))


def _verify(built: Path, manifest: Manifest, onnx: Artefact, name: str) -> Parity:
    """Run an engine and compare it with its ONNX file.

    Raises:
        GateError: its depth differs from the ONNX file's, or from run to run.
    """
    measured = []
    for options in options_per_size(manifest, SessionOptions()):
        session = backend(manifest.engine.flavour).open(built, manifest, options)  # type: ignore[union-attr]
        with session:
            require_repeatable(session, manifest.at(options.network_hw, options.batch), name)
            measured.append(measure_engine_parity(session, onnx))
    return worst_parity(measured)


def _engine_info(plan: BuildPlan, config: BuildConfig, result: dict[str, Any]) -> EngineInfo:
    timing: dict[str, float] = result["timing"]
    peak, gpus = result["peak_memory_mb"], nvidia_gpus()
    return EngineInfo(
        flavour=plan.flavour,
        version=str(result["version"]),
        compute_capabilities=plan.compute_capabilities,
        build_seconds=round(sum(timing.values()), 3),
        timing={part: round(seconds, 3) for part, seconds in timing.items()},
        peak_memory_mb=None if peak is None else round(peak, 1),
        system=f"{platform.system()}-{platform.machine()}".lower(),
        gpu=gpus[0].name if plan.runs_here and gpus else None,
        board=jetson_model() if plan.runs_here else None,
        driver=str(driver_version(gpus[0])) if gpus else None,
        options=config,
    )
