"""Worker processes have the parent's import path, without the working directory."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrordepth_edge import __version__
from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.bench import selftest
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines import process as build_process
from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.support.worker import ROOT, command_of

STRANGERS = ("tensorrt", "tensorrt_rtx", "polygraphy", "onnx", "numpy", "importlib", "runpy", "mirrordepth_edge")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose modules leave a file when they run, and end the process."""
    for name in STRANGERS:
        body = f"import os; open({str(tmp_path / 'RAN')!r}, 'a').write({name!r}); os._exit(9)"
        (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "RAN"


def test_the_builder_imports_nothing_from_the_working_directory(hostile: Path, tmp_path: Path) -> None:
    request = {
        "onnx": str(NANO_ONNX["fp16"]),
        "plan": str(tmp_path / "nano.plan"),
        "flavour": "tensorrt",
        "compute_capabilities": ["8.7"],
        "config": {},
        "layouts": {"image": "NHWC"},
        "timing_cache": None,
    }
    with pytest.raises(MdeError) as caught:  # for want of TensorRT, or of a GPU
        build_process.run_builder(request, BuildConfig())
    assert not hostile.exists(), hostile.read_text()
    assert "status 9" not in caught.value.why


@pytest.mark.parametrize("command", [build_process.COMMAND, selftest.COMMAND, command_of("mirrordepth_edge.cli")])
def test_no_worker_imports_anything_from_it(command: tuple[str, ...], hostile: Path) -> None:
    """The requests are invalid, so that the workers end at once. `python -m` proves that the folder is hostile."""
    done = subprocess.run([*command, "--version"], input="no JSON", capture_output=True, text=True, check=False)
    assert not hostile.exists(), hostile.read_text()
    assert ("JSONDecodeError" in done.stderr) or done.stdout.strip() == f"mirrordepth-edge {__version__}", done.stderr
    module = command[command.index("-c") + 2]
    subprocess.run([sys.executable, "-m", module], input="", capture_output=True, text=True, check=False)
    assert hostile.exists()


def path_and_arguments_in(folder: Path, environment: dict[str, str] | None = None) -> dict[str, list[str]]:
    """Path and arguments of a child whose module lies in `folder`, which is on PYTHONPATH."""
    body = "import json, sys\ndef main(): print(json.dumps({'path': sys.path, 'argv': sys.argv[1:]}))\n"
    (folder / "printer.py").write_text(body, encoding="utf-8")
    done = subprocess.run(
        [*command_of("printer"), "--some", "argument"],
        env={**os.environ, "PYTHONPATH": str(folder), **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, list[str]] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_the_rest_of_the_path_is_kept(safe_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH and all packages: what `python -c` has, except the first entry."""
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    report = path_and_arguments_in(tmp_path, {"PYTHONSAFEPATH": safe_path})
    plain = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path))"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert report["path"] == json.loads(plain.stdout)[1:]
    assert report["argv"] == ["--some", "argument"]


def test_a_copy_that_is_not_installed(tmp_path: Path) -> None:
    """Run by its path, as `python -m mirrordepth_edge` in a checkout: `-S` hides what is installed."""
    command = command_of("mirrordepth_edge.support.worker")
    bare = [command[0], "-S", *command[1:]]
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "has no attribute 'main'" in done.stderr
    assert (ROOT / "mirrordepth_edge" / "support" / "worker.py").is_file()


@pytest.mark.parametrize("module", ["mirrordepth_edge.cli", *(c[3] for c in (build_process.COMMAND, selftest.COMMAND))])
def test_worker_modules_have_a_main(module: str) -> None:
    assert callable(importlib.import_module(module).main)


def test_no_process_is_started_in_another_way() -> None:
    """Checked in the source, because running everything that starts a process takes long."""
    sources = (ROOT / "mirrordepth_edge").rglob("*.py")
    starts = [path.name for path in sources if 'sys.executable, "-m"' in path.read_text(encoding="utf-8")]
    assert starts == []
