"""The steps of `mde export`: decide the precision, write ONNX, copy to Triton, build an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.artefact import ONNX_SUFFIX, PLAN_SUFFIXES
from mirrordepth_edge.commands.build import build_and_report
from mirrordepth_edge.commands.export.floats import export_float
from mirrordepth_edge.commands.export.int8 import export_int8
from mirrordepth_edge.commands.export.request import ExportRequest
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.config import Precision, TargetConfig
from mirrordepth_edge.engines.build import load_targets
from mirrordepth_edge.engines.triton import write_triton_repository
from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.support.files import ensure_folder, require_suffix

# The precisions that an option applies to.
APPLIES_TO: dict[str, tuple[Precision, ...]] = {"--calib": ("fp16", "int8"), "--root": ("int8",), "--force": ("int8",)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to export, after defaults."""

    precision: Precision
    targets: tuple[TargetConfig, ...]
    for_cpu: bool
    """ONNX Runtime will run the file on a CPU; there is no engine to build."""
    build_engine: bool


def run_export(request: ExportRequest) -> None:
    """Run `mde export`.

    Raises:
        OptionError: Options do not fit together.
        MissingError: Packages for exporting are not installed.
        InputError, GateError: The model cannot be read, or fails its check.
    """
    model, output = request.source.model, request.output
    if request.triton is not None and request.precision is None and model.endswith((ONNX_SUFFIX, *PLAN_SUFFIXES)):
        copy_to_triton(Path(model), request.triton)
        return
    plan = plan_export(request)
    check_options(plan.precision, request)
    require_suffix(output, (ONNX_SUFFIX,), "an ONNX file")
    ensure_folder(output.parent)
    if plan.precision != "int8":
        export_float(request.source, output, plan.precision, request.calib)
    elif not export_int8(request, plan.targets, for_cpu=plan.for_cpu):
        return  # a sweep writes no model
    if request.triton is not None:
        copy_to_triton(output, request.triton)
    if plan.build_engine:
        build_if_possible(output, request.target)
    elif not plan.for_cpu:
        console.print(f"engine: not built for FP32; to build one: mde build {output}")


def plan_export(request: ExportRequest) -> Plan:
    """Choose the precision, and whether to build an engine, from the target and the explicit options.

    Raises:
        OptionError: The target is unknown.
    """
    targets = load_targets(request.target) if request.target else ()
    default: Precision = "fp32" if request.target is None else targets[0].precision if targets else "fp16"
    precision = request.precision or default
    for_cpu = bool(targets) and all(target.backend == "onnxruntime" for target in targets)
    # A sweep without a target times this machine's CPU.
    for_cpu |= request.target is None and request.int8.sweeps
    wants_engine = request.target is not None or precision != "fp32"
    return Plan(precision=precision, targets=targets, for_cpu=for_cpu, build_engine=wants_engine and not for_cpu)


def check_options(precision: Precision, request: ExportRequest) -> None:
    """Refuse options that have no effect in a precision.

    Raises:
        OptionError: One was given.
    """
    given = {"--calib": request.calib, "--root": request.int8.data, "--force": request.int8.force}
    for option, precisions in APPLIES_TO.items():
        if given[option] and precision not in precisions:
            raise OptionError(
                f"{option} is for {' and '.join(name.upper() for name in precisions)}, not {precision.upper()}.",
                "FP32 and FP16 are checked against PyTorch.",
                f"Add --int8, or leave {option} out.",
            )


def copy_to_triton(model: Path, repository: Path) -> None:
    """Copy an ONNX file or an engine into a model repository of NVIDIA Triton."""
    console.print(f"wrote {write_triton_repository(model, repository)}, for NVIDIA Triton")


def build_if_possible(onnx_path: Path, target: str | None) -> None:
    """Build the engine, or print why this machine cannot; the export itself has succeeded."""
    try:
        build_and_report(onnx_path, onnx_path.with_suffix(".plan"), target)
    except MissingError as error:
        console.print(f"engine: not built. {error.what} {error.why}")
        console.print(f"  next: {error.cure}")
