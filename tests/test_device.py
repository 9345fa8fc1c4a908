"""Parsers on text as the tools print it, and the machine itself where files and tools are stood in for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrordepth_edge import device
from mirrordepth_edge.device import Gpu

L4 = "NVIDIA L4, 8.9, 23034, 550.1"
ORIN_NANO = "NVIDIA Jetson Orin Nano Developer Kit"
R36 = """# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
"""
R35 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 2023"


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine with no GPU, no Jetson files and an empty PATH; its PATH folder."""
    for name in ("JETSON_MODEL", "L4T_RELEASE", "CPU_INFO"):
        monkeypatch.setattr(device, name, tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device.nvidia_gpus.cache_clear()
    yield tmp_path
    device.nvidia_gpus.cache_clear()


def fake_nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(0o755)


def test_nvidia_smi_rows() -> None:
    text = """NVIDIA GeForce RTX 4090, 8.9, 24564, 570.86.15
NVIDIA GB10, 12.1, [N/A], 580.95.05
Tesla K80, [N/A], 11441, 470.256.02
"""
    assert device.parse_nvidia_smi(text) == (
        Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_mib=24564, driver="570.86.15"),
        Gpu(name="NVIDIA GB10", compute_capability="12.1", memory_mib=None, driver="580.95.05"),
        Gpu(name="Tesla K80", compute_capability="", memory_mib=11441, driver="470.256.02"),
    )


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n", "Unable to determine the device handle, x\n"])
def test_nvidia_smi_without_gpus(text: str) -> None:
    assert device.parse_nvidia_smi(text) == ()


@pytest.mark.parametrize(
    ("text", "release"), [(R36, "36.4.3"), (R35, "35.4.1"), ("", None), ("# R36 (debug), GCID: 1", None)]
)
def test_l4t_release(text: str, release: str | None) -> None:
    assert device.parse_l4t_release(text) == release


@pytest.mark.parametrize(
    ("model", "capability"),
    [
        (ORIN_NANO, "8.7"),
        ("NVIDIA Orin NX Developer Kit", "8.7"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "11.0"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "7.2"),
        ("NVIDIA Jetson Nano Developer Kit", None),
        ("Raspberry Pi 5 Model B Rev 1.0", None),
        ("", None),
    ],
)
def test_jetson_gpu(model: str, capability: str | None) -> None:
    gpu = device.parse_jetson_gpu(model)
    assert (gpu.compute_capability if gpu else None) == capability
    assert gpu is None or (gpu.name, gpu.memory_mib) == (model, None)


def test_cpu_name() -> None:
    text = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.00GHz \nstepping\t: 3\n"
    assert device.parse_cpu_name(text * 2) == "Intel(R) Xeon(R) CPU @ 2.00GHz"
    assert device.parse_cpu_name("processor\t: 0\nCPU implementer\t: 0x41\n") is None


def test_a_jetson(bare_machine: Path) -> None:
    (bare_machine / "JETSON_MODEL").write_bytes(ORIN_NANO.encode() + b"\0")
    (bare_machine / "L4T_RELEASE").write_text(R36, encoding="utf-8")
    machine = device.machine()
    assert (machine.jetson, machine.l4t) == (ORIN_NANO, "36.4.3")
    assert [gpu.compute_capability for gpu in machine.gpus] == ["8.7"]


def test_another_arm_board_is_no_jetson(bare_machine: Path) -> None:
    (bare_machine / "JETSON_MODEL").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    machine = device.machine()
    assert (machine.jetson, machine.l4t, machine.gpus) == (None, None, ())
    assert machine.cpu
    assert machine.cores >= 1


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("script", "count"),
    [(f"echo '{L4}'", 1), (f"echo '{L4}'; exit 9", 0), ("exit 6", 0)],
)
def test_nvidia_smi_is_asked(bare_machine: Path, script: str, count: int) -> None:
    fake_nvidia_smi(bare_machine, script)
    assert len(device.nvidia_gpus()) == count


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
def test_hidden_gpus_are_not_counted(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(bare_machine, f"echo '{L4}'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.nvidia_gpus() == ()


def test_this_machine_describes_itself() -> None:
    machine = device.machine()
    assert machine.cores <= (os.cpu_count() or 1)
    assert machine.python == sys.version.split()[0]
    assert machine.cpu
