"""Imports flow downwards only, and each vendor is imported in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mirrordepth_edge"

# Lowest first. A module may import its own layer and those below it.
LAYERS = (
    {"errors"},
    {"config", "strict", "files", "lengths", "manifest", "recipes", "quiet", "child", "shipped"},
    {
        "camera",
        "calibration",
        "known_scale",
        "pointcloud",
        "preprocess",
        "stabilise",
        "postprocess",
        "metrics",
        "device",
        "environment",
        "known_bad",
        "draw",
        "data",
        "consistency",
        "edges",
        "evaluation",
        "baselines",
    },
    {"core", "backends"},
    {"deploy", "runtime"},
    {"bench", "live", "report"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

VENDORS = {
    "tensorrt": {"backends/tensorrt.py", "deploy/build_worker.py"},
    "tensorrt_rtx": {"backends/tensorrt_rtx.py", "deploy/build_worker.py"},
    "cuda": {"backends/cuda.py"},
    "modelopt": {"deploy/fp16.py"},
    "onnxruntime": {"backends/onnxruntime.py", "deploy/parity.py"},
    "openvino": {"backends/openvino.py"},
    "open_clip": {"core/clip.py"},
    "skimage": {"commands/demo.py"},
    "h5py": {"data/hdf5.py"},
    "scipy": {"data/nyu.py"},
    "pybullet": {"data/rendered.py"},
    "jinja2": {"report/html.py"},
    "mcap": {"live/record_mcap.py"},
    "starlette": {"live/web.py", "live/guard.py"},
    "uvicorn": {"live/web.py"},
    "websockets": {"live/web.py"},
    "rerun": {"live/rerun_log.py"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_flow_downwards(path: Path) -> None:
    own = part_of(path)
    if own == "__init__":
        return
    upward = {
        name
        for name in imported_names(path)
        if name.startswith("mirrordepth_edge.") and RANK.get(name.split(".")[1], -1) > RANK[own]
    }
    # The torch backend is the training model itself, and shares the exporter's tensor names.
    allowed = {"backends/pytorch.py": "mirrordepth_edge.export.trace"}
    exception = allowed.get(str(path.relative_to(PACKAGE)))
    assert not {name for name in upward if exception is None or not name.startswith(exception)}


def test_core_and_backends_do_not_know_each_other() -> None:
    for path in MODULES:
        relative = str(path.relative_to(PACKAGE))
        names = imported_names(path)
        if relative.startswith("core/"):
            assert not any(name.startswith("mirrordepth_edge.backends") for name in names), relative
        if relative.startswith("backends/") and relative != "backends/pytorch.py":
            assert not any(name.startswith("mirrordepth_edge.core") for name in names), relative


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("vendor", VENDORS)
def test_each_vendor_is_imported_in_its_place_only(vendor: str) -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == vendor for name in imported_names(path))
    }
    assert importers <= VENDORS[vendor]
    assert importers


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda p: p.name)
def test_commands_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_commands_print(path: Path) -> None:
    if part_of(path) in ("commands", "cli"):
        return
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls
