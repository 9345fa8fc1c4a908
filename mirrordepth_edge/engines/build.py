"""ONNX to engine: TensorRT on the target itself, TensorRT for RTX ahead of time anywhere."""

from __future__ import annotations

import platform
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.backends.base import Missing
from mirrordepth_edge.backends.registry import PLAN_SUFFIXES, backend
from mirrordepth_edge.backends.trt.tensorrt_rtx import COMPUTE_CAPABILITIES
from mirrordepth_edge.backends.trt.vendor import INSTALL, import_runtime
from mirrordepth_edge.config import BuildConfig, Precision, SessionOptions, TargetConfig
from mirrordepth_edge.engines import timing_cache
from mirrordepth_edge.engines.process import OnProgress, refuse_cpu_int8, run_worker
from mirrordepth_edge.engines.versions import Flavour, has_timing_cache, refuse_unsupported, require_new_enough
from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.export.dynamic_shapes import manifest_for_sizes, options_per_size, resolve_sizes
from mirrordepth_edge.export.parity import measure_engine_parity, worst_parity
from mirrordepth_edge.export.verify import require_repeatable
from mirrordepth_edge.machine.device import installed_versions, jetson_model, nvidia_gpus
from mirrordepth_edge.machine.known_issues import KnownProblem, known_problems
from mirrordepth_edge.machine.system import parse_driver
from mirrordepth_edge.manifest import EngineInfo, Manifest, Parity, read_manifest, write_artefact
from mirrordepth_edge.recipes import load_target, recipe_names
from mirrordepth_edge.reference import reference_path
from mirrordepth_edge.support.files import atomic_write, ensure_folder, require_suffix, sha256_of

HERE = "here"
RTX_TARGETS = ("rtx-ampere", "rtx-ada", "rtx-blackwell")
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What will be built, decided before anything slow starts."""

    flavour: Flavour
    compute_capabilities: tuple[str, ...]
    """GPUs the engine will run on."""
    runs_here: bool
    """This machine's first GPU, which is the one that runs engines, is one of them: it is proven before it is
    written."""
    version: str = ""
    """Of the builder; empty where it does not say."""


def load_targets(text: str) -> tuple[TargetConfig, ...]:
    """The recipes that `--target` names, several joined by commas; none for `here`.

    Raises:
        OptionError: one of them is unknown.
    """
    return () if text == HERE else tuple(load_target(name.strip()) for name in text.split(","))


def plan_build(target: str | None) -> BuildPlan:
    """Decide the flavour and the GPUs.

    Args:
        target: see `load_targets`. None is this machine's GPU, with TensorRT or else TensorRT for
            RTX; on a machine without a GPU it is every RTX target.

    Raises:
        OptionError: unknown targets, a mix that no one engine can serve, or a CPU.
        MissingError: it cannot be built on this machine; the cure says where and how.
    """
    if target is None and not nvidia_gpus() and platform.machine() != "aarch64":
        target = ",".join(RTX_TARGETS)
    targets = load_targets(target or HERE)
    if not targets:
        return _plan_here()
    flavours = {each.backend for each in targets}
    capabilities = tuple(dict.fromkeys(cc for each in targets for cc in each.compute_capabilities))
    if flavours == {"onnxruntime"}:
        raise OptionError(
            f"There is no engine to build for {target}.",
            "A CPU runs the ONNX file itself, through ONNX Runtime.",
            "mde run or mde bench the .onnx file; engines: --target " + " | ".join(_engine_targets()),
        )
    if flavours == {"tensorrt-rtx"}:
        return _plan_rtx(capabilities)
    if flavours == {"tensorrt"} and len(targets) == 1:
        _require_this_is(targets[0])
        return _plan_here()
    raise OptionError(
        f"No one engine serves {target}.",
        "Several targets can share an engine only if all are RTX ones.",
        "Build for one target at a time.",
    )


def _engine_targets() -> list[str]:
    return [HERE, *(name for name in recipe_names("export") if name != "cpu")]


def _plan_here() -> BuildPlan:
    gpus = nvidia_gpus()
    if find_spec("tensorrt") is None and gpus and gpus[0].compute_capability in COMPUTE_CAPABILITIES:
        return _plan_rtx((gpus[0].compute_capability,))
    version = _require_tensorrt("this machine")
    own = (gpus[0].compute_capability,)
    return BuildPlan(flavour="tensorrt", compute_capabilities=own, runs_here=True, version=version)


def _plan_rtx(capabilities: tuple[str, ...]) -> BuildPlan:
    if find_spec("tensorrt_rtx") is None:
        raise MissingError(
            f"An engine for compute capability {', '.join(capabilities)} needs TensorRT for RTX.",
            "The package tensorrt-rtx is not installed (it exists for x86-64 Linux and Windows).",
            INSTALL["tensorrt-rtx"],
        )
    if unknown := sorted(set(capabilities) - set(COMPUTE_CAPABILITIES)):
        raise OptionError(
            f"TensorRT for RTX does not serve compute capability {', '.join(unknown)}.",
            f"It serves {', '.join(COMPUTE_CAPABILITIES)}.",
            "Build with TensorRT on that GPU: mde build model.onnx --target here",
        )
    gpus = nvidia_gpus()
    runs_here = bool(gpus) and gpus[0].compute_capability in capabilities
    version = installed_versions(["tensorrt-rtx"]).get("tensorrt-rtx", "")
    return BuildPlan(flavour="tensorrt-rtx", compute_capabilities=capabilities, runs_here=runs_here, version=version)


def _require_tensorrt(where: str) -> str:
    """Its version, where it can build."""
    if not nvidia_gpus():
        raise MissingError(
            f"A TensorRT engine for {where} cannot be built here: there is no NVIDIA GPU.",
            "TensorRT builds on the GPU that will run the engine.",
            "Copy the .onnx and its .manifest.json to the target and type there: mde build model.onnx "
            "(TensorRT for RTX builds here: --target rtx-ada)",
        )
    version = str(getattr(import_runtime("tensorrt"), "__version__", ""))
    require_new_enough(version)
    return version


def _require_this_is(target: TargetConfig) -> None:
    _require_tensorrt(target.name)
    found = nvidia_gpus()[0].compute_capability
    if found not in target.compute_capabilities:
        raise MissingError(
            f"This machine is no {target.name}.",
            f"Its GPU has compute capability {found}, the target {', '.join(target.compute_capabilities)}.",
            f"Build on the target, or for this machine: --target {HERE}",
        )


def problems_of(plan: BuildPlan, precision: Precision) -> tuple[KnownProblem, ...]:
    """What is known to go wrong with such engines, the worst first."""
    each = (known_problems(plan.flavour, plan.version, cc, precision=precision) for cc in plan.compute_capabilities)
    return tuple({problem.id: problem for problems in each for problem in problems}.values())


def build_engine(
    onnx_path: Path,
    output: Path,
    plan: BuildPlan,
    config: BuildConfig | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Build an engine and write it with its manifest.

    Where the engine is for this machine's GPU its depth is compared with ONNX Runtime's first, at the smallest, the
    usual and the largest of its sizes: known TensorRT releases build engines that are fast and wrong.

    Args:
        config: the builder's own settings where None.
        on_progress: called, on this thread, as the builder goes on; what it raises ends the builder.

    Raises:
        InputError: the ONNX file is not one of ours, the parser or builder refused it, or a file cannot be written.
        OptionError: an option that this builder does not have, or that does not fit the file.
        MissingError: the engine is for this machine's GPU and could not be run on it; nothing was built.
        DeviceError: memory ran out.
        GateError: the engine's depth is not the ONNX file's, or another each time; nothing is written.
    """
    require_suffix(output, PLAN_SUFFIXES, "an engine")
    source = read_manifest(onnx_path)
    refuse_cpu_int8(onnx_path, source)
    config = resolve_sizes(config or BuildConfig(), source)
    integrated = plan.runs_here and any(gpu.integrated for gpu in nvidia_gpus()[:1])
    refuse_unsupported(config, plan.flavour, plan.version, integrated=integrated)
    if plan.runs_here:
        _require_runtime(plan.flavour)
    ensure_folder(output.parent)
    cache = _timing_cache(plan) if config.timing_cache else None
    with tempfile.TemporaryDirectory() as folder:
        built, timed = Path(folder) / "engine.plan", Path(folder) / "timing.cache"
        request = {
            "onnx": str(onnx_path.resolve()),
            "plan": str(built),
            "flavour": plan.flavour,
            "compute_capabilities": plan.compute_capabilities,
            "config": asdict(config),
            "layouts": {spec.name: spec.layout for spec in source.inputs},
            "timing_cache": None if cache is None else str(timed),
        }
        if cache is not None:
            timing_cache.take(cache, timed)
        answer = run_worker(request, config, on_progress)
        if cache is not None:
            timing_cache.keep(timed, cache)
        manifest = replace(
            manifest_for_sizes(source, config.dynamic),
            kind="plan",
            artefact_sha256=sha256_of(built),
            parent_sha256=source.artefact_sha256,
            engine=_engine_info(plan, config, answer),
        )
        if plan.runs_here:
            if config.weights == "stripped":
                _place_beside(built, onnx_path)
            manifest = replace(manifest, parity=_proven(built, manifest, onnx_path, source, output.name))
        with ExitStack() as stack:  # the reference takes its place after the plan, if that could be written
            if reference_path(onnx_path).is_file():
                shutil.copyfile(reference_path(onnx_path), stack.enter_context(atomic_write(reference_path(output))))
            write_artefact(output, built.read_bytes(), manifest)
    return manifest


def is_proven(manifest: Manifest) -> bool:
    """Whether an engine was run before it was written; else its parity is that of the ONNX file."""
    return manifest.engine is not None and manifest.parity.backend == manifest.engine.flavour


def _require_runtime(flavour: Flavour) -> None:
    """Minutes of building are for nothing where the engine cannot be run afterwards, and one not proven may be wrong.

    Raises:
        MissingError: engines do not run here.
    """
    probe = backend(flavour).probe()
    if isinstance(probe, Missing):
        raise MissingError(
            f"{flavour} could not run the engine on this machine, so it is not built.",
            f"An engine is compared with its ONNX file before it is written; {probe.reason.rstrip('.')}.",
            probe.cure,
        )


def _place_beside(built: Path, onnx_path: Path) -> None:
    """Put the ONNX file where an engine without weights is given them from."""
    beside = built.with_suffix(".onnx")
    try:
        beside.symlink_to(onnx_path.resolve())
    except OSError:  # Windows, where that is for administrators
        shutil.copyfile(onnx_path, beside)


def _timing_cache(plan: BuildPlan) -> Path | None:
    """Where timings of this machine's GPU are kept; None where the builder times none."""
    gpus = nvidia_gpus()
    if not (gpus and plan.runs_here and has_timing_cache(plan.flavour)):
        return None
    return timing_cache.timing_cache_path(gpus[0], plan.flavour, plan.version, _driver() or "")


def _proven(built: Path, manifest: Manifest, onnx_path: Path, source: Manifest, name: str) -> Parity:
    """Run an engine before it is written.

    Raises:
        GateError: its depth is not the ONNX file's, or another each time.
    """
    measured = []
    for options in options_per_size(manifest, SessionOptions()):
        session = backend(manifest.engine.flavour).open(built, manifest, options)  # type: ignore[union-attr]
        with session:
            require_repeatable(session, manifest.at(options.network_hw, options.batch), name)
            measured.append(measure_engine_parity(session, Artefact(path=onnx_path, kind="onnx", sidecar=source)))
    return worst_parity(measured)


def _engine_info(plan: BuildPlan, config: BuildConfig, answer: dict[str, Any]) -> EngineInfo:
    timing: dict[str, float] = answer["timing"]
    peak = answer["peak_memory_mb"]
    return EngineInfo(
        flavour=plan.flavour,
        version=str(answer["version"]),
        compute_capabilities=plan.compute_capabilities,
        build_seconds=round(sum(timing.values()), 3),
        timing={part: round(seconds, 3) for part, seconds in timing.items()},
        peak_memory_mb=None if peak is None else round(peak, 1),
        system=f"{platform.system()}-{platform.machine()}".lower(),
        gpu=nvidia_gpus()[0].name if plan.runs_here and nvidia_gpus() else None,
        board=jetson_model() if plan.runs_here else None,
        driver=_driver(),
        options=config,
    )


def _driver() -> str | None:
    """Such as "560.35.05, CUDA 12.6"; None without a GPU."""
    gpus = nvidia_gpus()
    if not gpus:
        return None
    try:
        kernel = parse_driver(DRIVER.read_text(encoding="utf-8"))
    except OSError:
        kernel = None
    return ", ".join(part for part in (kernel, f"CUDA {gpus[0].cuda}") if part)
