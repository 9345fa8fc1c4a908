"""Imports flow one way between folders, in no circle between files, and each vendor is imported in one place."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mirrordepth_edge"
NAME = PACKAGE.name

# Lowest first. A file may import from its own place and from those before it; the longest prefix of its path counts.
PLACES = (
    # what everything stands on
    "errors",
    "support",
    "config",
    "recipes",
    "manifest",
    "machine",
    # who runs a model
    "imaging",
    "camera",
    "sources",
    "model",
    "artefact",
    "backends/base",
    "backends/trt",
    "backends",
    "predictor",
    "live",
    "live/recording",
    "live/web",
    # who trains one
    "data",
    "data/rooms",
    "data/lint",
    "evaluation",
    "training",
    # who exports one
    "graph",
    "export",
    "quantise",
    "engines",
    # who asks
    "bench",
    "report",
    "commands",
    "cli",
    "__main__",
)
RANK = {place: rank for rank, place in enumerate(PLACES)}

VENDORS = {
    "tensorrt": {"backends/trt/vendor.py", "engines/worker.py"},
    "tensorrt_rtx": {"backends/trt/vendor.py", "engines/worker.py"},
    "cuda": {"backends/trt/cuda.py"},
    "modelopt": {"export/fp16.py"},
    "onnxruntime": {"backends/onnxruntime.py", "export/parity.py"},
    "openvino": {"backends/openvino.py"},
    "open_clip": {"model/clip.py"},
    "skimage": {"commands/demo.py"},
    "h5py": {"data/hdf5.py"},
    "scipy": {"data/nyu.py"},
    "pybullet": {"data/rooms/render.py"},
    "jinja2": {"report/html.py"},
    "mcap": {"live/recording/mcap.py"},
    "mcap_ros2": {"live/recording/mcap.py"},
    "starlette": {"live/web/server.py", "live/web/auth.py"},
    "uvicorn": {"live/web/server.py"},
    "websockets": {"live/web/server.py"},
    "rerun": {"live/recording/rerun.py"},
}
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imported_names(path: Path) -> set[str]:
    """Every module or attribute that a file imports, wherever in it, typing-only imports too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_files(file: str) -> set[str]:
    """The package's own files that a file imports."""
    stems = (name.removeprefix(f"{NAME}.").replace(".", "/") for name in imported_names(FILES[file]) if NAME in name)
    return ({f"{stem}.py" for stem in stems} & FILES.keys()) - {file}


def place_of(file: str) -> str | None:
    stem = file.removesuffix(".py").removesuffix("/__init__")
    fitting = [place for place in PLACES if stem == place or stem.startswith(f"{place}/")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("file", sorted(FILES.keys() - {"__init__.py"}))
def test_imports_flow_one_way(file: str) -> None:
    own = place_of(file)
    assert own is not None, "its folder has no place yet"
    places = {place_of(other) for other in imported_files(file)}
    assert not {place for place in places if place is not None and RANK[place] > RANK[own]}


def test_no_files_import_each_other() -> None:
    """Typing-only imports count: what two files know of each other belongs into one, or into a third."""
    try:
        TopologicalSorter({file: imported_files(file) for file in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_place_exists() -> None:
    assert {place_of(file) for file in FILES} - {None} == set(PLACES)


@pytest.mark.parametrize("vendor", VENDORS)
def test_each_vendor_is_imported_in_its_place_only(vendor: str) -> None:
    importers = {
        file for file, path in FILES.items() if any(name.split(".")[0] == vendor for name in imported_names(path))
    }
    assert importers == VENDORS[vendor]


@pytest.mark.parametrize("file", sorted(FILES))
def test_only_commands_print(file: str) -> None:
    if place_of(file) in ("commands", "cli"):
        return
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls
