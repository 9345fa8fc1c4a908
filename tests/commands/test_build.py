"""`mde build` as typed: what its options become, what it says, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands import build as build_command
from mirrordepth_edge.commands.build_options import parse_dynamic
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.deploy import build as build_module
from mirrordepth_edge.deploy.build import BuildPlan
from mirrordepth_edge.deploy.build_progress import BuildProgress
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.manifest import EngineInfo, Manifest, manifest_path, read_manifest, write_artefact
from mirrordepth_edge.runtime import NANO_ONNX


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is handed on, in place of building."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(build_command, "build_and_report", lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ([], BuildConfig()),
        (["--workspace", "1.5"], BuildConfig(workspace_gib=1.5)),
        (["--optimisation-level", "0"], BuildConfig(optimisation_level=0)),
        (["--no-timing-cache"], BuildConfig(timing_cache=False)),
        (["--verbosity", "layer-names"], BuildConfig(verbosity="layer-names")),
        (["--dynamic", "96x128,224x288, 448X576"], BuildConfig(dynamic=((96, 128), (224, 288), (448, 576)))),
        (["--hardware-compat", "ampere+"], BuildConfig(hardware_compat="ampere+")),
        (["--version-compat"], BuildConfig(version_compat=True)),
        (["--weights", "stripped"], BuildConfig(weights="stripped")),
    ],
)
def test_options_become_the_builders(
    options: list[str], config: BuildConfig, typed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    assert run_app(["build", "nano", "-o", str(tmp_path / "x.plan"), *options]) == 0
    assert typed == [(NANO_ONNX["fp32"], tmp_path / "x.plan", None, config)]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--workspace", "0"], "amount of memory"),
        (["--workspace", "-1"], "amount of memory"),
        (["--workspace", "nan"], "amount of memory"),
        (["--optimisation-level", "6"], "--optimisation-level"),
        (["--verbosity", "loud"], "detailed"),
        (["--hardware-compat", "turing"], "ampere+"),
        (["--weights", "thin"], "stripped"),
        (["--dynamic", "224x288"], "no range of sizes"),
        (["--dynamic", "224x288,96x128,448x576"], "no range of sizes"),
        (["--dynamic", "a,b,c"], "HEIGHTxWIDTH"),
    ],
)
def test_values_that_make_no_sense(
    options: list[str], word: str, typed: list[tuple[Any, ...]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["build", "nano", *options]) == 2
    assert word in capfd.readouterr().err
    assert not typed


def test_a_range_may_be_one_size_and_must_grow_in_both_lengths() -> None:
    assert parse_dynamic("32x64,32x64,32x64") == ((32, 64),) * 3
    with pytest.raises(OptionError, match="no range"):
        parse_dynamic("32x64,64x32,96x96")
    for sizes in (((64, 64), (32, 64), (96, 96)), ((0, 1), (1, 1), (1, 1))):
        with pytest.raises(ValueError, match="smallest"):
            BuildConfig(dynamic=sizes)


ORIN = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An Orin on JetPack 6 whose builder is done at once."""

    def built(model: Path, output: Path, plan: BuildPlan, config: BuildConfig | None, on_progress: Any) -> Manifest:
        on_progress(BuildProgress(phase="Timing graph nodes", fraction=0.5))
        engine = EngineInfo(
            flavour="tensorrt",
            version=plan.version,
            compute_capabilities=plan.compute_capabilities,
            build_seconds=61.2,
            peak_memory_mb=1234.4,
            options=config,
        )
        source = read_manifest(model)
        runner = "onnxruntime 1.24.4 CPU" if config else "tensorrt 10.3.0 on Orin against its FP32 ONNX"
        manifest = replace(source, kind="plan", engine=engine, parity=replace(source.parity, runner=runner))
        write_artefact(output, b"plan", manifest)
        return manifest

    monkeypatch.setattr(build_module, "plan_build", lambda target: ORIN)
    monkeypatch.setattr(build_module, "build_engine", built)
    return monkeypatch


def test_a_known_problem_is_told_before_building(
    orin: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_command.build_and_report(NANO_ONNX["fp32"], tmp_path / "x.plan", None)
    out, err = capfd.readouterr()
    assert "known problem (wrong, reported): TensorRT 10.3" in err
    assert "https://github.com/" in err
    assert "built in 61.2 s, 1234 MB of main memory at most" in out
    assert "parity: tensorrt 10.3.0 on Orin" in out


def test_no_problem_no_word(orin: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    orin.setattr(build_module, "problems_of", lambda plan, precision: ())
    build_command.build_and_report(NANO_ONNX["fp32"], tmp_path / "x.plan", None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BuildConfig(weights="stripped"), "weights are not in it"),
        (BuildConfig(dynamic=((32, 32), (32, 32), (64, 64))), "sizes are open"),
        (BuildConfig(), "no GPU of its kind"),
    ],
)
def test_an_engine_that_was_not_run_says_why(
    config: BuildConfig,
    reason: str,
    orin: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    build_command.build_and_report(NANO_ONNX["fp32"], tmp_path / "x.plan", None, config)
    out = capfd.readouterr().out
    assert "has not been run" in out
    assert reason in out


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are told by Linux's /proc")
def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """The signal goes to the whole group, as a terminal sends it, while a real builder works."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    for source in (NANO_ONNX["fp32"], manifest_path(NANO_ONNX["fp32"])):
        shutil.copy(source, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-m", "mirrordepth_edge", "build", "nano.onnx", "--target", "rtx-ada"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as mde:
        children = Path(f"/proc/{mde.pid}/task/{mde.pid}/children")
        until = time.monotonic() + 30
        while not children.read_text().strip():
            assert time.monotonic() < until, "no builder was started"
            time.sleep(0.02)
        time.sleep(0.3)
        os.killpg(mde.pid, signal.SIGINT)
        _, err = mde.communicate(timeout=30)
    assert mde.returncode == 130
    assert err.strip() == "interrupted"
    assert not group_is_alive(mde.pid)
    assert {path.name for path in tmp_path.iterdir()} == before
