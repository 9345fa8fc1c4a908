"""Whether a plan may be loaded here; asked of its manifest, before any runtime sees the plan's bytes.

A plan is native code: NVIDIA says of loading one from a source that is not trusted that it equals running that source's
program (https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/security.html). A manifest's hash finds what was
damaged, replaced or mixed up. It does not prove who made a plan: whoever can change the plan can change its manifest.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mirrordepth_edge.artefact import SHIPPED, Artefact
from mirrordepth_edge.backends.trt.plan import build_here
from mirrordepth_edge.backends.trt.vendor import PACKAGES, Flavour, import_runtime
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine.device import Gpu, jetson_model, nvidia_gpus
from mirrordepth_edge.machine.known_issues import version_key
from mirrordepth_edge.machine.system import parse_driver
from mirrordepth_edge.manifest import EngineInfo, Manifest, manifest_path, parse_manifest
from mirrordepth_edge.support.files import existing_file

DRIVER: Final = Path("/proc/driver/nvidia/version")
LATER_MAJORS: Final = ((8, 10), (10, 11))
"""Version-compatible plans of the one major version that run in the other, beside later versions of their own:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html"""
RTX_MAGIC: Final = b"vtrt"
MAJORS: Final[dict[Flavour, range]] = {"tensorrt": range(8, 20), "tensorrt-rtx": range(1, 8)}
"""Major versions that a plan's header is believed to tell; others mean that it holds something else."""


@dataclass(frozen=True, kw_only=True)
class CompatibilityReport:
    """A plan that may be loaded."""

    manifest: Manifest
    notes: tuple[str, ...]
    """What its user should know all the same, a sentence each."""


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
            "A plan is native code that runs with your rights, and its "
            f"{manifest_path(path).name}, which says where it is from and what it takes, is not beside it.",
            f"Copy the manifest along with it. {build_here(path)}. One that you built yourself: --trust",
        )
    return Artefact.open(path, trust=trust)


def check_compatibility(
    plan: Path | Artefact, *, trust: bool = False, wanted: str | None = None
) -> CompatibilityReport:
    """Check that a plan runs on this machine; without a GPU, only the file is checked.

    Args:
        plan: the file, or the file opened already.
        trust: accept a plan without a manifest. The manifest of its ONNX file is used instead.
        wanted: the runtime that was asked for, for a plan that does not name its own.

    Raises:
        InputError: there is no manifest, the file is not the one that it describes, or it was not built for this
            machine; the last names both sides and how to build it here.
        MissingError: no runtime for it is installed.
    """
    artefact = plan if isinstance(plan, Artefact) else open_plan(plan, trust=trust)
    path, manifest = artefact.path, artefact.sidecar
    notes: tuple[str, ...] = ()
    if manifest is None:
        onnx_path = _its_onnx(path)
        manifest = _stand_in(artefact, onnx_path, wanted)
        notes = (
            f"{path.name} has no manifest and is trusted: inputs, precision and units are those of "
            f"{onnx_path.name}, and what it was built for is not checked.",
        )
    if manifest.engine is not None and nvidia_gpus():
        notes += check_plan(path, manifest.engine, manifest.parent_sha256)
    return CompatibilityReport(manifest=manifest, notes=notes)


def check_plan(path: Path, engine: EngineInfo, parent_sha256: str | None = None) -> tuple[str, ...]:
    """Hold what a plan was built by and for to this machine, which has a GPU.

    Args:
        parent_sha256: of the ONNX file that it was built from, to say what to build it from here.

    Returns:
        What makes it likely, and not certain, that it fails or is slow.

    Raises:
        InputError: it does not run here.
        MissingError: no runtime for it is installed.
    """
    gpus = nvidia_gpus()
    if mismatches := [*_runtime_mismatch(engine), *_system_mismatch(engine)]:
        if not runs_on(engine, gpus[0].compute_capability):
            mismatches.append(_gpu_mismatch(engine, gpus))
        cure = build_here(path, parent_sha256)
        raise InputError(f"{path} was not built for this machine.", " ".join(mismatches), cure)
    require_served(path, engine, gpus, parent_sha256)
    return tuple(_warnings(engine, gpus[0]))


def require_served(path: Path, engine: EngineInfo, gpus: tuple[Gpu, ...], parent_sha256: str | None = None) -> None:
    """Sessions run on GPU 0, which must be one that the plan was built for.

    Args:
        parent_sha256: see `check_plan`.

    Raises:
        InputError: it is not; names every GPU, and how to choose one that is.
    """
    if runs_on(engine, gpus[0].compute_capability):
        return
    fitting = [index for index, gpu in enumerate(gpus) if runs_on(engine, gpu.compute_capability)]
    raise InputError(
        f"{path} was not built for the GPU that would run it.",
        _gpu_mismatch(engine, gpus),
        f"Choose the other GPU: CUDA_VISIBLE_DEVICES={_visible_name(fitting[0])}"
        if fitting
        else build_here(path, parent_sha256),
    )


def runs_on(engine: EngineInfo, compute_capability: str) -> bool:
    """Whether a plan was built for GPUs such as "8.7".

    One without compute capabilities does not say. `ampere+` is 8.0 and later, `same-cc` no more than those named:
    https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/engine-compatibility.html
    """
    if not engine.compute_capabilities or compute_capability in engine.compute_capabilities:
        return True
    since_ampere = engine.options is not None and engine.options.hardware_compat == "ampere+"
    return since_ampere and version_key(compute_capability) >= (8,)


def runs_in(engine: EngineInfo, version: str) -> bool:
    """Whether a plan runs in this version of its runtime.

    In the version that built it. One that is version-compatible runs in later ones of the same major version too, and
    in those of `LATER_MAJORS`. TensorRT for RTX has no such plans: https://docs.nvidia.com/deeplearning/tensorrt-rtx/
    latest/inference-library/engine-compatibility.html. A version that cannot be read is left to the runtime to judge.
    """
    built, here = version_key(engine.version), version_key(version)
    if not built or not here:
        return True
    compatible = engine.flavour == "tensorrt" and engine.options is not None and engine.options.version_compat
    if compatible and here >= built:
        return built[0] == here[0] or (built[0], here[0]) in LATER_MAJORS
    # Packages leave the build number out here and there: 10.3.0 and 10.3.0.30 may be the same.
    length = 4 if min(len(built), len(here)) >= 4 else 3
    return _padded(built, length) == _padded(here, length)


def _padded(key: tuple[int, ...], length: int) -> tuple[int, ...]:
    return (*key, *[0] * length)[:length]


def _runtime_mismatch(engine: EngineInfo) -> Iterator[str]:
    built = f"{engine.flavour} {engine.version}".strip()
    try:
        version = _runtime_version(engine.flavour)
    except MissingError:
        others = [each for each, package in PACKAGES.items() if each != engine.flavour and find_spec(package)]
        if not others:
            raise
        yield f"It is a plan of {built}; installed is {others[0]}, and neither loads the other's."
        return
    if not runs_in(engine, version):
        later = ", or a later one" if engine.options is not None and engine.options.version_compat else ""
        yield (
            f"It was built by {built}, and here is {engine.flavour} {version}: a plan runs in the version that "
            f"built it{later}."
        )


def _runtime_version(flavour: Flavour) -> str:
    """
    Raises:
        MissingError: it is not installed, or does not load.
    """
    return str(import_runtime(flavour).__version__)


def _system_mismatch(engine: EngineInfo) -> Iterator[str]:
    """TensorRT's plans run on the system that they were built on; those of TensorRT for RTX on all that it serves
    (https://docs.nvidia.com/deeplearning/tensorrt-rtx/1.4/installing-tensorrt-rtx/example-deployment.html)."""
    here = f"{platform.system()}-{platform.machine()}".lower()
    if engine.flavour == "tensorrt" and engine.system not in (None, here):
        yield f"It was built on {engine.system}, and this is {here}."


def _gpu_mismatch(engine: EngineInfo, gpus: tuple[Gpu, ...]) -> str:
    later = " and later" if engine.options is not None and engine.options.hardware_compat == "ampere+" else ""
    seen = ", ".join(f"GPU {index} is {gpu.name} ({gpu.compute_capability})" for index, gpu in enumerate(gpus))
    built_for = ", ".join(engine.compute_capabilities)
    return f"It is for compute capability {built_for}{later}; sessions run on GPU 0, and {seen}."


def _visible_name(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls a GPU, where it may hide and rename others already."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return chosen[index].strip() if index < len(chosen) and chosen[index].strip() else str(index)


def _warnings(engine: EngineInfo, gpu: Gpu) -> Iterator[str]:
    here = driver_here(gpu)
    if engine.driver is not None and any(
        old < new for old, new in zip(_driver_keys(here), _driver_keys(engine.driver), strict=True) if old and new
    ):
        yield (
            f"The driver here ({here}) is older than the one that the plan was built under ({engine.driver}); "
            "if it fails to load or gives wrong depth, update the driver."
        )
    portable = engine.options is not None and engine.options.hardware_compat != "none"
    if engine.flavour == "tensorrt" and not portable and (moved := _moved(engine, gpu)):
        built_on, here = moved
        yield (
            f"The plan was built on {built_on} and runs on {here}: other kernels may be faster there; mde build "
            "--target here chooses them."
        )


def _moved(engine: EngineInfo, gpu: Gpu) -> tuple[str, str] | None:
    """Where a plan was built and where it is, if these are known and differ.

    The CUDA driver calls the GPU of every Orin module "Orin", whose compute capability is 8.7 in all of them; what
    tells them apart is the board's name.
    """
    board_here = jetson_model()
    if engine.board is not None and board_here is not None and engine.board != board_here:
        return engine.board, board_here
    return None if engine.gpu in (None, gpu.name) else (str(engine.gpu), gpu.name)


def driver_here(gpu: Gpu) -> str:
    """NVIDIA's driver as manifests have it, such as "560.35.05, CUDA 12.6"."""
    try:
        kernel = parse_driver(DRIVER.read_text(encoding="utf-8"))
    except OSError:
        kernel = None
    return ", ".join(part for part in (kernel, f"CUDA {gpu.cuda}") if part)


def _driver_keys(driver: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Version of the kernel driver and of CUDA, each empty where it is not told."""
    cuda = re.search(r"CUDA ([\d.]+)", driver)
    return version_key(driver), version_key(cuda[1] if cuda else "")


def _its_onnx(path: Path) -> Path:
    """The ONNX file that the name of a plan without a manifest tells: beside it, else the one that ships by that name,
    as in trtexec's `nano.fp16.plan` of `mde build nano.fp16 --print-trtexec`."""
    beside = path.with_suffix(".onnx")
    return beside if manifest_path(beside).is_file() else SHIPPED.get(path.stem, beside)


def _stand_in(plan: Artefact, onnx_path: Path, wanted: str | None) -> Manifest:
    """A manifest for a plan without one: what its ONNX file's manifest says, and what the plan's header does.

    Raises:
        InputError: there is no such manifest, or it cannot be read.
    """
    path, sidecar = plan.path, manifest_path(onnx_path)
    if not sidecar.is_file():
        raise InputError(
            f"{path} has no manifest, and its ONNX file has none here either.",
            f"What the network takes and gives is unknown; {sidecar.name} would say it.",
            f"Put {sidecar.name} beside it. {build_here(path)}",
        )
    cure = "Copy it again from where the ONNX file is."
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{sidecar} is no readable JSON.", str(error), cure) from error
    source = parse_manifest(data, str(sidecar), cure)
    flavour, version = _header(path)
    if flavour is None:
        asked = [each for each in PACKAGES if each == wanted]
        installed = [each for each, package in PACKAGES.items() if find_spec(package)]
        flavour = (*asked, *installed, "tensorrt")[0]
    return replace(
        source,
        kind="plan",
        artefact_sha256=plan.sha256,
        parent_sha256=source.artefact_sha256,
        engine=EngineInfo(flavour=flavour, version=version, compute_capabilities=(), build_seconds=0.0),
    )


def _header(path: Path) -> tuple[Flavour | None, str]:
    """Whose plan a file is and the version that built it, as far as its first bytes tell.

    Bytes 24 to 27 are the four parts of the version (https://github.com/NVIDIA/TensorRT/issues/3073), and plans of
    TensorRT for RTX 1.7 begin with `vtrt`. Neither is documented, so that nothing but `--trust` depends on it.
    """
    with path.open("rb") as file:
        head = file.read(28)
    if len(head) < 28 or head[1:4] != b"trt":
        return None, ""
    flavour: Flavour = "tensorrt-rtx" if head[:4] == RTX_MAGIC else "tensorrt"
    return flavour, ".".join(map(str, head[24:28])) if head[24] in MAJORS[flavour] else ""
