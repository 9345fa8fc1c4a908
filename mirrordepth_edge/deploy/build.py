"""ONNX to engine: TensorRT on the target itself, TensorRT for RTX ahead of time anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mirrordepth_edge.backends import tensorrt, tensorrt_rtx
from mirrordepth_edge.config import TargetConfig
from mirrordepth_edge.device import nvidia_gpus
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.files import ensure_folder, sha256_of
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
    """Empty for TensorRT, which builds for the GPU it runs on."""


def plan_build(target: str | None) -> BuildPlan:
    """Decide the flavour and the GPUs for `--target`.

    Args:
        target: a recipe, several RTX recipes joined by commas, `here` (this machine's GPU with
            TensorRT), or None: `here` where that works, else every RTX target.

    Raises:
        OptionError: unknown targets, a mix that no one engine can serve, or a CPU.
        MissingError: it cannot be built on this machine; the cure says where and how.
    """
    if target is None:
        if find_spec("tensorrt") is not None and nvidia_gpus():
            return plan_build(HERE)
        return plan_build(",".join(RTX_TARGETS))
    if target == HERE:
        _require_tensorrt("this machine")
        return BuildPlan(flavour="tensorrt", compute_capabilities=())
    targets = [load_target(name.strip()) for name in target.split(",")]
    flavours = {each.backend for each in targets}
    if flavours == {"tensorrt-rtx"}:
        if find_spec("tensorrt_rtx") is None:
            raise MissingError(
                f"An engine for {target} needs TensorRT for RTX.",
                "The package tensorrt-rtx is not installed (it exists for x86-64 Linux and Windows).",
                tensorrt_rtx.INSTALL,
            )
        capabilities = tuple(cc for each in targets for cc in each.compute_capabilities)
        return BuildPlan(flavour="tensorrt-rtx", compute_capabilities=tuple(dict.fromkeys(capabilities)))
    if flavours == {"tensorrt"} and len(targets) == 1:
        _require_this_is(targets[0])
        return BuildPlan(flavour="tensorrt", compute_capabilities=())
    if flavours == {"onnxruntime"}:
        raise OptionError(
            f"There is no engine to build for {target}.",
            "A CPU runs the ONNX file itself, through ONNX Runtime.",
            "mde run or mde bench the .onnx file; engines: --target " + " | ".join(_engine_targets()),
        )
    raise OptionError(
        f"No one engine serves {target}.",
        "Several targets can share an engine only if all are RTX ones.",
        "Build for one target at a time.",
    )


def _engine_targets() -> list[str]:
    return [HERE, *(name for name in recipe_names("export") if name != "cpu")]


def _require_tensorrt(where: str) -> None:
    if find_spec("tensorrt") is None or not nvidia_gpus():
        missing = "no TensorRT" if find_spec("tensorrt") is None else "no NVIDIA GPU"
        raise MissingError(
            f"A TensorRT engine for {where} cannot be built here: there is {missing}.",
            "TensorRT builds on the GPU that will run the engine.",
            "Copy the .onnx and its .manifest.json to the target and type there: mde build model.onnx "
            "(TensorRT for RTX builds here: --target rtx-ada)",
        )
    tensorrt.module()


def _require_this_is(target: TargetConfig) -> None:
    _require_tensorrt(target.name)
    found = {gpu.compute_capability for gpu in nvidia_gpus()}
    if not found & set(target.compute_capabilities):
        raise MissingError(
            f"This machine is no {target.name}.",
            f"Its GPU has compute capability {', '.join(sorted(found))}, the target {target.compute_capabilities[0]}.",
            f"Build on the target, or for this machine: --target {HERE}",
        )


def build_engine(onnx_path: Path, output: Path, plan: BuildPlan) -> Manifest:
    """Build an engine and write it with its manifest.

    Raises:
        InputError: the ONNX file is not one of ours, or the parser or builder refused it.
    """
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
                "mde inspect FILE shows its operators; another --target or --fp32 may build.",
            )
        manifest = replace(
            source,
            kind="plan",
            artefact_sha256=sha256_of(built),
            parent_sha256=source.artefact_sha256,
            engine=EngineInfo(
                flavour=plan.flavour,
                version=str(answer["version"]),
                compute_capabilities=plan.compute_capabilities,
                build_seconds=round(float(answer["seconds"]), 3),
            ),
        )
        write_artefact(output, built.read_bytes(), manifest)
    return manifest


def _run_worker(request: dict[str, Any]) -> dict[str, Any]:
    """Run the builder in a child process, which dies with this one's Ctrl-C."""
    command = [sys.executable, "-m", "mirrordepth_edge.deploy.build_worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            _, log = worker.communicate(json.dumps(request))
        except BaseException:
            worker.kill()
            raise
    answer = Path(request["answer"])
    if worker.returncode != 0 or not answer.is_file():
        lines = [line for line in log.strip().splitlines() if line.strip()]
        return {"failed": lines[-1] if lines else f"the builder stopped with status {worker.returncode}"}
    data: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return data
