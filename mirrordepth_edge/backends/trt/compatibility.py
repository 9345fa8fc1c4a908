"""Check from its manifest whether a plan can run here, before a runtime reads the plan.

A plan is native code: loading one from an untrusted source is the same as running a program from it
(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/security.html). The hash in the manifest detects damaged
or mixed-up files. It does not prove who made the plan: whoever can change the plan can change its manifest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mirrordepth_edge.artefact import SHIPPED, Artefact
from mirrordepth_edge.backends.trt.plan import build_here
from mirrordepth_edge.backends.trt.vendor import PACKAGES, Flavour, import_runtime
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine.device import Gpu, jetson_model, nvidia_gpus
from mirrordepth_edge.machine.driver import driver_version, parse_driver_version
from mirrordepth_edge.manifest import EngineInfo, Manifest, manifest_path, parse_manifest
from mirrordepth_edge.support.files import existing_file, read_json
from mirrordepth_edge.support.versions import padded_key, version_key

COMPATIBLE_MAJORS: Final = ((8, 10), (10, 11))
"""A version-compatible plan of the first major version also runs in the second:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html"""
RTX_MAGIC: Final = b"vtrt"
MAJORS: Final[dict[Flavour, range]] = {"tensorrt": range(8, 20), "tensorrt-rtx": range(1, 8)}
"""Plausible major versions in a plan's header; with others, these bytes are not the version."""


def open_plan(path: Path, *, trust: bool = False) -> Artefact:
    """Read a plan's manifest and check that it belongs to the file.

    Args:
        trust: accept a plan without a manifest.

    Raises:
        InputError: there is no manifest, or the file is not the one that it describes.
    """
    if not trust and not manifest_path(path).is_file():
        existing_file(path, "model")
        raise InputError(
            f"{path} has no manifest.",
            "A plan is native code that runs with your permissions. The manifest that describes its origin, inputs "
            f"and outputs, must be next to it: {manifest_path(path).name}.",
            f"Copy the manifest as well. {build_here(path)}. If you built the plan yourself, add --trust.",
        )
    return Artefact.open(path, trust=trust)


def check_compatibility(plan: Artefact, *, wanted: str | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """Check that a plan runs on this machine; without a GPU, only the file is checked.

    Args:
        plan: one without a manifest is trusted, and has that of its ONNX file.
        wanted: runtime that the user chose; used if the plan's header does not name one.

    Returns:
        The manifest, and warnings of one sentence each.

    Raises:
        InputError: there is no manifest, the file does not match it, or the plan was not built for this machine.
        MissingError: no runtime for the plan is installed.
    """
    path, manifest = plan.path, plan.sidecar
    notes: tuple[str, ...] = ()
    if manifest is None:
        onnx_path = _onnx_of(path)
        manifest = _manifest_from_onnx(plan, onnx_path, wanted)
        notes = (
            f"{path.name} has no manifest and is trusted: inputs, precision and units are taken from "
            f"{onnx_path.name}; the GPU, system and version it was built for are not checked.",
        )
    if manifest.engine is not None and nvidia_gpus():
        notes += check_plan(path, manifest.engine, manifest.parent_sha256)
    return manifest, notes


def check_plan(path: Path, engine: EngineInfo, parent_sha256: str | None = None) -> tuple[str, ...]:
    """Check whether a plan runs on this machine, which must have a GPU.

    Args:
        path: the plan.
        engine: build information in its manifest.
        parent_sha256: SHA-256 of its ONNX file, used in the command of the error message.

    Returns:
        Warnings that the plan may fail or be slow.

    Raises:
        InputError: the plan does not run here; names the differences and the command that builds it here.
        MissingError: no runtime for the plan is installed.
    """
    gpus = nvidia_gpus()
    if mismatches := [*_runtime_mismatch(engine), *_system_mismatch(engine)]:
        if not runs_on(engine, gpus[0].compute_capability):
            mismatches.append(_gpu_mismatch(engine, gpus))
        cure = build_here(path, parent_sha256)
        raise InputError(f"{path} was not built for this machine.", " ".join(mismatches), cure)
    require_supported_gpu(path, engine, gpus, parent_sha256)
    return tuple(_warnings(engine, gpus[0]))


def require_supported_gpu(
    path: Path, engine: EngineInfo, gpus: tuple[Gpu, ...], parent_sha256: str | None = None
) -> None:
    """Raise an error if the plan was not built for GPU 0, which runs sessions.

    Args:
        path: the plan.
        engine: build information in its manifest.
        gpus: all GPUs of this machine.
        parent_sha256: see `check_plan`.

    Raises:
        InputError: the plan was built for other GPUs; names every GPU, and how to choose a suitable one.
    """
    if runs_on(engine, gpus[0].compute_capability):
        return
    suitable = [index for index, gpu in enumerate(gpus) if runs_on(engine, gpu.compute_capability)]
    raise InputError(
        f"{path} was not built for this GPU.",
        _gpu_mismatch(engine, gpus),
        f"Choose the other GPU: CUDA_VISIBLE_DEVICES={_visible_name(suitable[0])}"
        if suitable
        else build_here(path, parent_sha256),
    )


def runs_on(engine: EngineInfo, compute_capability: str) -> bool:
    """Whether a plan runs on GPUs of a compute capability such as "8.7"; True if the plan names none."""
    # `ampere+` covers 8.0 and later, `same-cc` only the named ones:
    # https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/engine-compatibility.html
    if not engine.compute_capabilities or compute_capability in engine.compute_capabilities:
        return True
    since_ampere = engine.options is not None and engine.options.hardware_compat == "ampere+"
    return since_ampere and version_key(compute_capability) >= (8,)


def runs_in(engine: EngineInfo, version: str) -> bool:
    """Whether a plan runs in this version of its runtime; True if a version is unknown.

    A plan runs in the version that built it. A version-compatible plan also runs in later versions of the same major
    version, and in those of `COMPATIBLE_MAJORS`.
    """
    # TensorRT for RTX has no version-compatible plans:
    # https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/engine-compatibility.html
    built, here = version_key(engine.version), version_key(version)
    if not built or not here:
        return True
    compatible = engine.flavour == "tensorrt" and engine.options is not None and engine.options.version_compat
    if compatible and here >= built:
        return built[0] == here[0] or (built[0], here[0]) in COMPATIBLE_MAJORS
    # Some packages leave out the build number: 10.3.0 and 10.3.0.30 may be the same.
    length = 4 if min(len(built), len(here)) >= 4 else 3
    return padded_key(engine.version, length) == padded_key(version, length)


def _runtime_mismatch(engine: EngineInfo) -> Iterator[str]:
    built = f"{engine.flavour} {engine.version}".strip()
    try:
        version = str(import_runtime(engine.flavour).__version__)
    except MissingError:
        others = [flavour for flavour, package in PACKAGES.items() if flavour != engine.flavour and find_spec(package)]
        if not others:
            raise
        yield f"It was built by {built}, but only {others[0]} is installed, which cannot load it."
        return
    if not runs_in(engine, version):
        later = " or a later one" if engine.options is not None and engine.options.version_compat else ""
        yield (
            f"It was built by {built}, but {engine.flavour} {version} is installed; a plan runs only in the version "
            f"that built it{later}."
        )


def _system_mismatch(engine: EngineInfo) -> Iterator[str]:
    # TensorRT plans run only on the operating system and architecture that built them; plans of TensorRT for RTX run on
    # all supported ones (https://docs.nvidia.com/deeplearning/tensorrt-rtx/1.4/installing-tensorrt-rtx/
    # example-deployment.html).
    here = f"{platform.system()}-{platform.machine()}".lower()
    if engine.flavour == "tensorrt" and engine.system not in (None, here):
        yield f"It was built on {engine.system}, but this machine is {here}."


def _gpu_mismatch(engine: EngineInfo, gpus: tuple[Gpu, ...]) -> str:
    later = " and later" if engine.options is not None and engine.options.hardware_compat == "ampere+" else ""
    seen = ", ".join(f"GPU {index} is {gpu.name} ({gpu.compute_capability})" for index, gpu in enumerate(gpus))
    built_for = ", ".join(engine.compute_capabilities)
    return f"It was built for compute capability {built_for}{later}; sessions run on GPU 0, and {seen}."


def _visible_name(index: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES for a GPU, given that the variable may already renumber the GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[index].strip() if index < len(visible) and visible[index].strip() else str(index)


def _warnings(engine: EngineInfo, gpu: Gpu) -> Iterator[str]:
    driver = driver_version(gpu)
    if engine.driver is not None and driver.older_than(parse_driver_version(engine.driver)):
        yield (
            f"This driver ({driver}) is older than the driver on which the plan was built ({engine.driver}). "
            "If the plan fails to load or gives wrong depth, update the driver."
        )
    portable = engine.options is not None and engine.options.hardware_compat != "none"
    if engine.flavour == "tensorrt" and not portable and (places := _build_and_run_place(engine, gpu)):
        built_on, here = places
        yield (
            f"The plan was built on {built_on} and runs on {here}, where other kernels may be faster; rebuild it with "
            "mde build --target here."
        )


def _build_and_run_place(engine: EngineInfo, gpu: Gpu) -> tuple[str, str] | None:
    """The board or GPU that built a plan and the one that runs it, if they are known and differ."""
    # All Orin modules have the GPU name "Orin" and compute capability 8.7; only the board name tells them apart.
    board_here = jetson_model()
    if engine.board is not None and board_here is not None and engine.board != board_here:
        return engine.board, board_here
    return None if engine.gpu in (None, gpu.name) else (str(engine.gpu), gpu.name)


def _onnx_of(path: Path) -> Path:
    """The ONNX file of a plan without a manifest, by its name: in the same folder, or else a shipped model."""
    # `mde build nano.fp16 --print-trtexec` makes trtexec write nano.fp16.plan without a manifest.
    neighbour = path.with_suffix(".onnx")
    return neighbour if manifest_path(neighbour).is_file() else SHIPPED.get(path.stem, neighbour)


def _manifest_from_onnx(plan: Artefact, onnx_path: Path, wanted: str | None) -> Manifest:
    """Build a manifest for a plan without one, from its ONNX file's manifest and the plan's header.

    Raises:
        InputError: there is no such manifest, or it cannot be read.
    """
    path, sidecar = plan.path, manifest_path(onnx_path)
    if not sidecar.is_file():
        raise InputError(
            f"{path} has no manifest, and neither has its ONNX file.",
            f"Inputs and outputs of the network are unknown without {sidecar.name}.",
            f"Put {sidecar.name} into the same folder. {build_here(path)}",
        )
    cure = "Copy it again from the folder of the ONNX file."
    source = parse_manifest(read_json(sidecar, "manifest", cure), str(sidecar), cure)
    flavour, version = _header(path)
    if flavour is None:
        chosen = [name for name in PACKAGES if name == wanted]
        installed = [name for name, package in PACKAGES.items() if find_spec(package)]
        flavour = (*chosen, *installed, "tensorrt")[0]
    return replace(
        source,
        kind="plan",
        artefact_sha256=plan.sha256,
        parent_sha256=source.artefact_sha256,
        engine=EngineInfo(flavour=flavour, version=version, compute_capabilities=(), build_seconds=0.0),
    )


def _header(path: Path) -> tuple[Flavour | None, str]:
    """Runtime and version in a plan's header; None and "" if it has none."""
    # Bytes 24 to 27 are the version (https://github.com/NVIDIA/TensorRT/issues/3073), and plans of TensorRT for RTX 1.7
    # start with `vtrt`. Neither is documented, so only `--trust` depends on it.
    with path.open("rb") as file:
        head = file.read(28)
    if len(head) < 28 or head[1:4] != b"trt":
        return None, ""
    flavour: Flavour = "tensorrt-rtx" if head[:4] == RTX_MAGIC else "tensorrt"
    return flavour, ".".join(map(str, head[24:28])) if head[24] in MAJORS[flavour] else ""
