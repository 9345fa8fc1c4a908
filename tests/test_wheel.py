"""The wheel holds what it should, and an installed one finds its recipes and models."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, str(folder), str(ROOT)], check=True, timeout=600)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mirrordepth_edge"}

    tracked = subprocess.run(["git", "ls-files", "mirrordepth_edge"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0 and tracked.stdout:
        missing = set(tracked.stdout.split()) - names
        assert not missing
    for kind, folder in (("export", "export"), ("calib", "calib"), ("benchmarks/suites", "benchmarks/suites")):
        for recipe in (ROOT / folder).glob("*.toml"):
            assert f"mirrordepth_edge/_recipes/{kind}/{recipe.name}" in names
    for model in ("nano.safetensors", "nano.onnx", "nano.fp16.onnx", "nano.md"):
        assert f"mirrordepth_edge/models/{model}" in names
    assert "mirrordepth_edge/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("mirrordepth_edge/tests")]


def test_installed_wheel_finds_recipes_and_models(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "from mirrordepth_edge import artefact, recipes\n"
        f"assert str(recipes.PACKAGE_DIR).startswith(r'{site}'), recipes.PACKAGE_DIR\n"
        "assert recipes.load_target('orin-nano').backend == 'tensorrt'\n"
        "assert len(recipes.recipe_names('export')) == 8\n"
        "assert artefact.NANO_CHECKPOINT.is_file() and all(p.is_file() for p in artefact.NANO_ONNX.values())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_checkout_finds_its_recipes() -> None:
    from mirrordepth_edge.recipes import recipe_folder, recipe_names

    assert recipe_folder("export") == ROOT / "export"
    assert "orin-nano" in recipe_names("export")


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_base_installs_on_aarch64_without_torch_and_tensorrt(python: str, wheel: Path) -> None:
    """What pip would install on a Jetson, asked of the package index without installing it."""
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    requirements = [Requirement(line.split(": ", 1)[1]) for line in lines if line.startswith("Requires-Dist: ")]
    # pip takes wheels for another platform, but answers markers for the one it runs on.
    jetson = {"platform_machine": "aarch64", "sys_platform": "linux", "python_version": python, "extra": ""}
    wanted = [f"{r.name}{r.specifier}" for r in requirements if r.marker is None or r.marker.evaluate(jetson)]
    assert not {name for name in wanted if name.startswith(("torch", "tensorrt", "nvidia", "cuda", "open_clip"))}
    assert [name for name in wanted if name.startswith("onnxruntime")] == ["onnxruntime>=1.18"]

    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 26, 27, 28)] + ["manylinux2014_aarch64"]
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"),
        *(part for platform in platforms for part in ("--platform", platform)),
        *("--python-version", python, "--only-binary=:all:", "--target", "unused", *wanted),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0 and "No matching distribution" not in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    names = {entry["metadata"]["name"].lower().replace("_", "-") for entry in json.loads(done.stdout)["install"]}
    assert {"numpy", "opencv-python", "onnx", "polygraphy", "onnxruntime"} <= names
    assert not {name for name in names if name.startswith(("torch", "tensorrt", "nvidia", "cuda", "open-clip"))}


def test_one_onnx_runtime_is_installed() -> None:
    """The two wheels share one import package and overwrite each other; no extra may bring the second."""
    from importlib.metadata import distributions

    names = {distribution.metadata["Name"].lower().replace("_", "-") for distribution in distributions()}
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == 1
