"""What `mde doctor` says of machines that this one is not."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from typing import Any

import cv2
import pytest

from mirrordepth_edge import device
from mirrordepth_edge.backends import onnxruntime, registry, tensorrt, tensorrt_rtx
from mirrordepth_edge.backends.base import Available, Missing, Probe
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands import doctor
from mirrordepth_edge.device import CudaDriver, Gpu, Machine

ORIN = Gpu(name="Orin", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")
ADA = Gpu(name="NVIDIA RTX 4090", compute_capability="8.9", memory_mib=24564, integrated=False, cuda="13.0")
LAPTOP = Machine(
    system="Linux", architecture="x86_64", python="3.12.3", cpu="CPU", cores=8, gpus=(), jetson=None, l4t=None
)
JETSON = replace(
    LAPTOP, architecture="aarch64", gpus=(ORIN,), jetson="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3"
)
PROBES: dict[str, Probe] = {
    "torch": Missing(reason="the package torch is not installed", cure="pip install torch"),
    "onnxruntime": Available(version="1.24.4", devices=("cpu",)),
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes this machine another one, with nothing installed."""

    def become(machine: Machine, problem: str | None = None) -> None:
        monkeypatch.setattr(device, "machine", lambda: machine)
        monkeypatch.setattr(device, "cuda_driver", lambda: CudaDriver(gpus=machine.gpus, problem=problem))
        monkeypatch.setattr(platform, "machine", lambda: machine.architecture)
        monkeypatch.setattr(registry, "probe_all", lambda: PROBES)
        monkeypatch.setattr(onnxruntime, "cuda_problem", lambda: problem)
        monkeypatch.setattr(doctor, "installed_packages", dict)

    return become


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_app(["doctor", *arguments]) == 0
    return capsys.readouterr().out


def test_a_machine_without_a_driver(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(LAPTOP, "libcuda.so.1 is not there: no NVIDIA driver")
    text = report(capsys)
    assert "GPU           none visible (libcuda.so.1 is not there: no NVIDIA driver)" in text
    assert "works    onnxruntime   1.24.4 on cpu" in text
    assert "missing  torch         the package torch is not installed" in text
    assert "not on the GPU" not in text


def test_gpus(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(replace(LAPTOP, gpus=(ADA, ORIN)))
    text = report(capsys)
    assert "GPU           NVIDIA RTX 4090, compute capability 8.9, 24564 MiB, CUDA up to 13.0" in text
    assert "GPU           Orin, compute capability 8.7, 7620 MiB shared with the CPU, CUDA up to 12.6" in text


def test_an_onnx_runtime_that_cannot_use_the_gpu(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(replace(LAPTOP, gpus=(ADA,)), "The CUDA provider does not load; it needs libcudnn.so.9.")
    text = report(capsys)
    assert "not on the GPU: The CUDA provider does not load; it needs libcudnn.so.9." in text
    assert f"next: {onnxruntime.GPU_CURE}" in text


def test_hints_on_a_jetson(here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (tensorrt, tensorrt_rtx):
        monkeypatch.setattr(module, "find_spec", lambda package: None)
    here(JETSON)
    monkeypatch.setattr(
        registry, "probe_all", lambda: {"tensorrt": tensorrt.probe(), "tensorrt-rtx": tensorrt_rtx.probe()}
    )
    text = report(capsys)
    assert "NVIDIA Jetson Orin Nano Developer Kit, Jetson Linux 36.4.3" in text
    assert "mirrordepth-edge[tensorrt]" not in text
    assert "mirrordepth-edge[rtx]" not in text
    assert "JetPack" in text
    assert "cuda-bindings     not installed  (pip install 'cuda-python>=12.6,<13' on JetPack 6" in text


def test_hints_on_a_pc(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(LAPTOP)
    text = report(capsys)
    for name in ("tensorrt", "cuda-bindings"):
        assert f"{name:18}not installed  (pip install 'mirrordepth-edge[tensorrt]')" in text
    assert f"{'tensorrt-rtx':18}not installed  (pip install 'mirrordepth-edge[rtx]')" in text
    assert "JetPack" not in text


@pytest.mark.parametrize(("answer", "words"), [("YES (1.20.3)", "with GStreamer"), ("NO", "without GStreamer")])
def test_opencv(
    answer: str, words: str, here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(LAPTOP)
    information = f"  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   {answer}\n"
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: information)
    assert f"OpenCV        {cv2.__version__} {words}" in report(capsys)


def test_an_opencv_that_does_not_import(
    here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(LAPTOP)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "OpenCV        does not import" in report(capsys)


def test_json(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(JETSON)
    found = json.loads(report(capsys, "--json"))
    assert found["machine"]["gpus"] == [vars(ORIN)]
    assert found["gpu_problem"] is None
    assert found["opencv"].startswith(cv2.__version__)
    assert found["backends"]["torch"] == {"available": False, **vars(PROBES["torch"])}
    here(LAPTOP, "cuInit: CUDA_ERROR_NO_DEVICE (100)")
    assert json.loads(report(capsys, "--json"))["gpu_problem"] == "cuInit: CUDA_ERROR_NO_DEVICE (100)"
