"""ONNX to engine: TensorRT on the target itself, TensorRT for RTX ahead of time anywhere."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mirrordepth_edge.backends import tensorrt, tensorrt_rtx
from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.registry import PLAN_SUFFIXES, backend
from mirrordepth_edge.config import SessionOptions, TargetConfig
from mirrordepth_edge.deploy.parity import ENGINE_GATE, check_parity, measure_engine_parity
from mirrordepth_edge.deploy.reference import copy_reference
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.files import ensure_folder, require_suffix, sha256_of
from mirrordepth_edge.manifest import EngineInfo, Manifest, read_manifest, write_artefact
from mirrordepth_edge.recipes import load_target, recipe_names

HERE = "here"
RTX_TARGETS = ("rtx-ampere", "rtx-ada", "rtx-blackwell")

Flavour = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What will be built, decided before anything slow starts."""

    flavour: Flavour
    compute_capabilities: tuple[str, ...]
    """GPUs the engine will run on."""
    runs_here: bool
    """This machine's GPU is one of them, so the engine can be proven before it is written."""


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
    if find_spec("tensorrt") is None and gpus and gpus[0].compute_capability in tensorrt_rtx.COMPUTE_CAPABILITIES:
        return _plan_rtx((gpus[0].compute_capability,))
    _require_tensorrt("this machine")
    return BuildPlan(flavour="tensorrt", compute_capabilities=(gpus[0].compute_capability,), runs_here=True)


def _plan_rtx(capabilities: tuple[str, ...]) -> BuildPlan:
    if find_spec("tensorrt_rtx") is None:
        raise MissingError(
            f"An engine for compute capability {', '.join(capabilities)} needs TensorRT for RTX.",
            "The package tensorrt-rtx is not installed (it exists for x86-64 Linux and Windows).",
            tensorrt_rtx.INSTALL,
        )
    if unknown := sorted(set(capabilities) - set(tensorrt_rtx.COMPUTE_CAPABILITIES)):
        raise OptionError(
            f"TensorRT for RTX does not serve compute capability {', '.join(unknown)}.",
            f"It serves {', '.join(tensorrt_rtx.COMPUTE_CAPABILITIES)}.",
            "Build with TensorRT on that GPU: mde build model.onnx --target here",
        )
    gpus = nvidia_gpus()
    runs_here = bool(gpus) and gpus[0].compute_capability in capabilities
    return BuildPlan(flavour="tensorrt-rtx", compute_capabilities=capabilities, runs_here=runs_here)


def _require_tensorrt(where: str) -> None:
    if not nvidia_gpus():
        raise MissingError(
            f"A TensorRT engine for {where} cannot be built here: there is no NVIDIA GPU.",
            "TensorRT builds on the GPU that will run the engine.",
            "Copy the .onnx and its .manifest.json to the target and type there: mde build model.onnx "
            "(TensorRT for RTX builds here: --target rtx-ada)",
        )
    tensorrt.module()


def _require_this_is(target: TargetConfig) -> None:
    _require_tensorrt(target.name)
    found = nvidia_gpus()[0].compute_capability
    if found not in target.compute_capabilities:
        raise MissingError(
            f"This machine is no {target.name}.",
            f"Its GPU has compute capability {found}, the target {', '.join(target.compute_capabilities)}.",
            f"Build on the target, or for this machine: --target {HERE}",
        )


def build_engine(onnx_path: Path, output: Path, plan: BuildPlan) -> Manifest:
    """Build an engine and write it with its manifest.

    Where the engine can run on this machine its depth is compared with ONNX Runtime's first, by
    `ENGINE_GATE`: known TensorRT releases build engines that are fast and wrong.

    Raises:
        InputError: the ONNX file is not one of ours, or the parser or builder refused it.
        GateError: the engine's depth is not the ONNX file's; nothing is written.
    """
    require_suffix(output, PLAN_SUFFIXES, "an engine")
    source = read_manifest(onnx_path)
    ensure_folder(output.parent)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "engine.plan"
        answer = _run_worker(
            {
                "onnx": str(onnx_path.resolve()),
                "plan": str(built),
                "answer": str(Path(folder) / "answer.json"),
                "flavour": plan.flavour,
                "compute_capabilities": plan.compute_capabilities,
            }
        )
        if "failed" in answer:
            raise InputError(
                f"{plan.flavour} cannot build {onnx_path}.",
                str(answer["failed"]),
                "mde inspect FILE shows what it is; another --target or --fp32 may build.",
            )
        engine = EngineInfo(
            flavour=plan.flavour,
            version=str(answer["version"]),
            compute_capabilities=plan.compute_capabilities,
            build_seconds=round(float(answer["seconds"]), 3),
        )
        manifest = replace(
            source,
            kind="plan",
            artefact_sha256=sha256_of(built),
            parent_sha256=source.artefact_sha256,
            engine=engine,
        )
        if plan.runs_here and isinstance(backend(plan.flavour).probe(), Available):
            session = backend(plan.flavour).open(built, manifest, SessionOptions())
            manifest = replace(manifest, parity=measure_engine_parity(session, onnx_path, source))
            check_parity(manifest.parity, ENGINE_GATE)
        copy_reference(onnx_path, output)
        write_artefact(output, built.read_bytes(), manifest)
    return manifest


def _run_worker(request: dict[str, Any]) -> dict[str, Any]:
    """Run the builder in a child process, which dies with this one's Ctrl-C."""
    command = [sys.executable, "-m", "mirrordepth_edge.deploy.build_worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as worker:
        try:
            log, _ = worker.communicate(json.dumps(request))
        except BaseException:
            worker.kill()
            raise
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    answer = Path(request["answer"])
    if worker.returncode != 0 or not answer.is_file():
        return {"failed": lines[-1] if lines else f"the builder stopped with status {worker.returncode}"}
    data: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "failed" in data:  # what TensorRT logged says more than the exception that follows it
        data["failed"] = "\n".join([data["failed"], *[line for line in lines if "[E]" in line][-3:]])
    return data
