"""`mde doctor` on simulated machines."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import platformdirs
import pytest

from mirrordepth_edge.backends import base, onnxruntime, registry
from mirrordepth_edge.backends.base import Available, Probe
from mirrordepth_edge.backends.trt import tensorrt, tensorrt_rtx, vendor
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands.doctor import command as doctor
from mirrordepth_edge.machine import device, system
from mirrordepth_edge.machine.device import CudaDriver, Gpu, Machine
from mirrordepth_edge.machine.system import Python, read_environment
from mirrordepth_edge.machine.unavailable import Cause, Unavailable
from mirrordepth_edge.sources import v4l2
from mirrordepth_edge.sources.v4l2 import CameraInfo

SYSTEMS = Path(__file__).parents[2] / "fixtures" / "systems"

ORIN = Gpu(name="Orin", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")
ADA = Gpu(name="NVIDIA RTX 4090", compute_capability="8.9", memory_mib=24564, integrated=False, cuda="13.0")
LAPTOP = Machine(
    system="Linux", architecture="x86_64", python="3.12.3", cpu="CPU", cores=8, gpus=(), jetson=None, l4t=None
)
JETSON = replace(
    LAPTOP, architecture="aarch64", gpus=(ORIN,), jetson="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3"
)
ENOUGH_DISK_MIB = 50_000
PROBES: dict[str, Probe] = {
    "torch": Unavailable(reason="the package torch is not installed", cure="pip install torch"),
    "onnxruntime": Available(version="1.24.4", devices=("cpu",)),
}


def silent(command: Sequence[str]) -> str:
    raise FileNotFoundError(2, "No such file or directory", command[0])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that makes this machine another one, with nothing installed and no files."""

    def become(machine: Machine, problem: str | None = None) -> None:
        monkeypatch.setattr(system, "read_environment", partial(read_environment, tmp_path, silent))
        monkeypatch.setattr(system, "disk_free_mib", lambda folder: ENOUGH_DISK_MIB)
        monkeypatch.setattr(v4l2, "list_cameras", list)
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
    here(LAPTOP, "libcuda.so.1 not found: no NVIDIA driver is installed")
    text = report(capsys)
    assert "GPU           none visible (libcuda.so.1 not found: no NVIDIA driver is installed)" in text
    assert "works          onnxruntime   1.24.4 on cpu" in text
    assert "does not work  torch         the package torch is not installed" in text
    assert "CPU only" not in text


def test_gpus(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(replace(LAPTOP, gpus=(ADA, ORIN)))
    text = report(capsys)
    assert "GPU           NVIDIA RTX 4090, compute capability 8.9, 24564 MiB, CUDA up to 13.0" in text
    assert "GPU           Orin, compute capability 8.7, 7620 MiB shared with the CPU, CUDA up to 12.6" in text


def test_an_onnx_runtime_that_cannot_use_the_gpu(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(replace(LAPTOP, gpus=(ADA,)), "The CUDA provider cannot be loaded; it needs libcudnn.so.9.")
    text = report(capsys)
    assert "CPU only: The CUDA provider cannot be loaded; it needs libcudnn.so.9." in text
    assert f"next: {onnxruntime.GPU_CURE}" in text


def test_hints_on_a_jetson(here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    here(JETSON)
    monkeypatch.setattr(
        registry, "probe_all", lambda: {"tensorrt": tensorrt.probe(), "tensorrt-rtx": tensorrt_rtx.probe()}
    )
    text = report(capsys)
    assert "NVIDIA Jetson Orin Nano Developer Kit, Jetson Linux 36.4.3" in text
    assert "mirrordepth-edge[tensorrt]" not in text
    assert "mirrordepth-edge[rtx]" not in text
    assert "JetPack" in text
    assert "cuda-bindings     not installed  (pip install 'cuda-python==12.6.*')" in text


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
    assert "OpenCV        cannot be imported" in report(capsys)


def test_json(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here(JETSON)
    found = json.loads(report(capsys, "--json"))
    assert found["machine"]["gpus"] == [vars(ORIN)]
    assert found["gpu_problem"] is None
    assert found["opencv"].startswith(cv2.__version__)
    assert found["backends"]["torch"] == {
        "available": False,
        "reason": "the package torch is not installed",
        "cure": "pip install torch",
    }
    here(LAPTOP, "cuInit: CUDA_ERROR_NO_DEVICE (100)")
    assert json.loads(report(capsys, "--json"))["gpu_problem"] == "cuInit: CUDA_ERROR_NO_DEVICE (100)"


THOR = Gpu(name="NVIDIA Thor", compute_capability="11.0", memory_mib=125771, integrated=True, cuda="13.0")
BLACKWELL = Gpu(
    name="NVIDIA GeForce RTX 5090", compute_capability="12.0", memory_mib=32607, integrated=False, cuda="12.9"
)
SYSTEM_PYTHON = Python(version="3.10.12", abi="cp310", venv=True, system_packages=True)
BARE_VENV = replace(SYSTEM_PYTHON, system_packages=False)
NO_TENSORRT = Unavailable(
    reason="the package tensorrt is not installed", cure=vendor.JETPACK, cause=Cause.NOT_INSTALLED
)


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that makes this machine one of the fixtures', from its files on."""

    def start(
        name: str,
        *gpus: Gpu,
        python: Python = SYSTEM_PYTHON,
        engine: Probe = NO_TENSORRT,
        packages: dict[str, str] | None = None,
        onnxruntime_problem: str | None = None,
        cameras: Sequence[CameraInfo] = (),
    ) -> Path:
        root = tmp_path / name
        text = (SYSTEMS / name / "files.txt").read_text(encoding="utf-8")
        for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
            path, _, body = part.partition("\n")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(body.replace("␀\n", "\0"), encoding="utf-8")

        def run(command: Sequence[str]) -> str:
            printed = SYSTEMS / name / "nvpmodel.txt"
            return printed.read_text(encoding="utf-8") if command[0] == "nvpmodel" else silent(command)

        problem = None if gpus else "libcuda.so.1 not found: no NVIDIA driver is installed"
        onnx = Available(version="1.24.4", devices=("cpu",))
        for constant, file in (("JETSON_MODEL", "proc/device-tree/model"), ("L4T_RELEASE", "etc/nv_tegra_release")):
            monkeypatch.setattr(device, constant, root / file)
        monkeypatch.setattr(device, "cuda_driver", lambda: CudaDriver(gpus=gpus, problem=problem))
        monkeypatch.setattr(platform, "machine", lambda: "x86_64" if name == "desktop" else "aarch64")
        monkeypatch.setattr(system, "read_environment", partial(read_environment, root, run))
        monkeypatch.setattr(system, "this_python", lambda: python)
        monkeypatch.setattr(system, "disk_free_mib", lambda folder: ENOUGH_DISK_MIB)
        monkeypatch.setattr(registry, "probe_all", lambda: {"onnxruntime": onnx, "tensorrt": engine})
        monkeypatch.setattr(onnxruntime, "cuda_problem", lambda: onnxruntime_problem)
        monkeypatch.setattr(doctor, "installed_packages", lambda: packages or {})
        monkeypatch.setattr(v4l2, "list_cameras", lambda: list(cameras))
        return root

    return start


def works(version: str, gpu: Gpu) -> Available:
    return Available(version=version, devices=(gpu.name,))


def to_do(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(report(capsys, "--json"))["to_do"]
    assert all(each["what"] and each["next"] for each in found)
    return found


def test_an_orin_nano_whose_venv_does_not_see_tensorrt(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = boot("orin-nano", ORIN, python=BARE_VENV)
    text = report(capsys)
    assert "Jetson Linux 36.4.3, JetPack 6.2 (6.2+b77)" in text
    assert "driver        540.4.0" in text
    assert "CUDA toolkit  12.6.11" in text
    assert "Python        3.10.12 (cp310), venv, without access to system packages" in text
    assert "power mode    25W (mode 1); available: 15W, 25W, MAXN_SUPER, 7W" in text
    assert "GPU clock     306 to 918 MHz" in text
    assert f"memory        {7802736 // 1024} MiB, {6245596 // 1024} MiB available, 3810 MiB swap (zram)" in text
    bad, engine, power, clocks = to_do(capsys)
    assert bad["level"] == "wrong"
    assert "Installed: TensorRT 10.3.0.30, for compute capability 8.7." in bad["what"]
    assert "https://github.com/" in bad["why"]
    assert engine["next"].startswith("python3 -m venv --system-site-packages")
    assert str(root / "usr/lib/python3.10/dist-packages/tensorrt") in engine["why"]
    assert power["next"] == "sudo nvpmodel -m 2"
    assert clocks["next"].startswith("sudo jetson_clocks")
    assert text.index(bad["what"]) < text.index(engine["what"]) < text.index(power["what"])


def test_another_python_than_the_one_tensorrt_is_for(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("orin-nano", ORIN, python=replace(BARE_VENV, version="3.12.3", abi="cp312"))
    engine = to_do(capsys)[1]
    assert "for Python 3.10; this is Python 3.12 without access to system packages." in engine["why"]
    assert engine["next"].startswith("/usr/bin/python3.10 -m venv --system-site-packages")


@pytest.mark.parametrize(
    ("gpu", "wanted"), [(ORIN, "'cuda-python==12.6.*'"), (replace(ORIN, cuda="13.2"), "'cuda-python==13.2.*'")]
)
def test_the_cuda_python_for_this_cuda(gpu: Gpu, wanted: str, boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    no_cuda = Unavailable(reason="it is not installed", cure="pip install cuda-python", cause=Cause.CUDA_PYTHON)
    boot("orin-nano", gpu, engine=no_cuda, packages={"tensorrt": "10.3.0"})
    (engine,) = (each for each in to_do(capsys) if each["level"] == "missing")
    assert engine["next"] == f"pip install {wanted}"


@pytest.mark.parametrize(
    ("reason", "cause", "wanted"),
    [
        ("import tensorrt: libnvinfer.so.10: cannot open", Cause.IMPORT_FAILED, "sudo apt install --reinstall it"),
        ("Engines need cuda-python, which is not installed.", Cause.CUDA_PYTHON, "pip install 'cuda-python==12.6.*'"),
    ],
)
def test_bindings_of_jetpack_that_do_not_work_are_not_called_absent(
    reason: str, cause: Cause, wanted: str, boot: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """They lie in dist-packages, where no pip knows of them, and this Python sees them."""
    boot(
        "orin-nano",
        ORIN,
        engine=Unavailable(reason=reason, cure="sudo apt install --reinstall it", cause=cause),
        packages={},
    )
    (engine,) = (each for each in to_do(capsys) if "TensorRT does not work" in each["what"])
    assert reason.rstrip(".") in engine["why"]
    assert engine["next"] == wanted


def test_an_orin_nano_with_jetpack_7(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("orin-nano-jetpack-7", replace(ORIN, cuda="13.2"), engine=works("10.16.2.10", ORIN))
    assert "JetPack 7.2.1 (7.2.1-b49)" in report(capsys)
    found = to_do(capsys)
    assert [each["level"] for each in found] == ["slow", "hint", "hint"]
    assert found[0]["next"] == "sudo nvpmodel -m 2"
    assert "no swap" in found[2]["what"]
    assert "swapon" in found[2]["next"]


def test_an_orin_nx_with_a_minimal_flash(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("orin-nx", ORIN)
    text = report(capsys)
    assert "JetPack 6.2.1" in text
    assert re.search(r"CUDA toolkit  unknown \(.*version.json: No such file", text)
    found = to_do(capsys)
    assert [each["next"] for each in found[:2]] == ["sudo apt install nvidia-jetpack", "sudo nvpmodel -m 0"]
    assert not any(each["level"] == "wrong" for each in found)


def test_an_agx_orin_that_is_ready(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("agx-orin", ORIN, engine=works("10.16.2.10", ORIN), packages={"tensorrt": "10.16.2.10"})
    text = report(capsys)
    assert "power mode    MAXN (mode 0)" in text
    assert "GPU clock     locked at 1300 MHz" in text
    assert text.endswith("no problems found\n")
    assert to_do(capsys) == []


def test_a_thor(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("thor", THOR, engine=works("10.13.3.9", THOR))
    assert "NVIDIA Jetson AGX Thor Developer Kit, Jetson Linux 38.4.0, JetPack 7.1\n" in report(capsys)
    found = to_do(capsys)
    assert [each["level"] for each in found] == ["wrong", "slow", "hint"]
    assert "10.13.3.9, for compute capability 11.0" in found[0]["what"]
    assert "fc_h_fusion" in found[0]["next"]
    assert found[1]["next"] == "sudo nvpmodel -m 0"


def test_a_desktop(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    why = "The CUDA provider of onnxruntime 1.24.4 cannot be loaded; it needs libcudnn.so.9."
    boot("desktop", BLACKWELL, engine=works("10.7.0", BLACKWELL), onnxruntime_problem=why)
    text = report(capsys)
    assert "Jetson" not in text.split("backends")[0]
    assert "driver        575.57.08" in text
    assert "8191 MiB swap (file)" in text
    found = to_do(capsys)
    assert [each["level"] for each in found] == ["missing", "slow"]
    assert found[0]["next"] == "pip install --upgrade 'tensorrt>=10.8'"
    assert found[1]["why"] == why


def test_a_gpu_without_a_driver(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("desktop")
    (gpu,) = to_do(capsys)
    assert "libcuda.so.1 not found" in gpu["what"]
    assert "ubuntu-drivers" in gpu["next"]
    boot("orin-nano")
    assert "docker run --runtime nvidia" in to_do(capsys)[0]["next"]


def test_a_tensorrt_that_is_too_old(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("agx-orin", ORIN, engine=works("8.6.2", ORIN))
    (old,) = to_do(capsys)
    assert "TensorRT 8.6.2 is too old; mde needs 10.3 or later" in old["what"]


def test_a_board_of_another_maker(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = boot("orin-nano", ORIN, engine=works("10.16.1", ORIN))
    (root / "proc/device-tree/model").write_bytes(b"Lanner EAI-I233\0")
    assert "board of another maker, Jetson Linux 36.4.3" in report(capsys)
    assert to_do(capsys)[0]["next"] == "sudo nvpmodel -m 2"


def test_cameras(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fine = CameraInfo(device="/dev/video0", name="HD Webcam", driver="uvcvideo", bus="usb-1", formats=(), problem=None)
    shut = replace(fine, device="/dev/video2", name="", problem="Permission denied", denied=True)
    busy = replace(shut, device="/dev/video4", problem="Device or resource busy", denied=False)
    boot("agx-orin", ORIN, engine=works("10.16.1", ORIN), cameras=(fine, shut, busy))
    text = report(capsys)
    assert "camera        /dev/video0 HD Webcam" in text
    assert "camera        /dev/video2 (Permission denied)" in text
    denied, other = to_do(capsys)
    assert "usermod -aG video" in denied["next"]
    assert "Device or resource busy" in other["what"]
    assert "usermod" not in other["next"]


def test_a_system_without_a_list_of_cameras(
    boot: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boot("agx-orin", ORIN, engine=works("10.16.1", ORIN))
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(v4l2, "video_devices", lambda folder: [Path("/dev/video0")])
    assert doctor.cameras() == []


def test_little_room(boot: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = boot("agx-orin", ORIN, engine=works("10.16.1", ORIN))
    (root / "proc/meminfo").write_text("MemTotal: 7802736 kB\nMemAvailable: 1000000 kB\nSwapTotal: 4000000 kB\n")
    monkeypatch.setattr(system, "disk_free_mib", lambda folder: 1200)
    memory, disk = to_do(capsys)
    assert "Only 976 MiB of memory" in memory["what"]
    assert "Only 1200 MiB of disk space" in disk["what"]


def test_the_disk_of_the_caches(here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here(LAPTOP)
    asked: list[Path] = []
    monkeypatch.setattr(system, "disk_free_mib", lambda folder: asked.append(folder) or 5000)
    assert "disk          5000 MiB free for caches" in report(capsys)
    assert asked == [Path(platformdirs.user_cache_dir("mirrordepth-edge"))]


def test_an_absent_onnx_runtime_is_to_be_installed(
    here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(LAPTOP)
    gone = Unavailable(reason="the package onnxruntime is not installed", cure=onnxruntime.INSTALL)
    monkeypatch.setattr(registry, "probe_all", lambda: {"onnxruntime": gone})
    (only,) = to_do(capsys)
    assert (only["level"], only["next"]) == ("missing", onnxruntime.INSTALL)


def test_json_of_a_whole_machine(boot: Any, capsys: pytest.CaptureFixture[str]) -> None:
    boot("orin-nano", ORIN)
    found = json.loads(report(capsys, "--json"))
    old = {"mirrordepth_edge", "machine", "gpu_problem", "opencv", "backends", "packages"}
    assert old < set(found)
    assert found["machine"]["l4t"] == "36.4.3"
    assert found["environment"]["power_mode"] == {"number": 1, "name": "25W"}
    assert [mode["name"] for mode in found["environment"]["power_modes"]] == ["15W", "25W", "MAXN_SUPER", "7W"]
    boot("orin-nx", ORIN)
    assert set(json.loads(report(capsys, "--json"))["environment"]["cuda_toolkit"]) == {"reason"}
