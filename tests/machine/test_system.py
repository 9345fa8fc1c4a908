"""Parsers on the texts of real machines, and whole machines grown from them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from mirrordepth_edge.machine import jetson
from mirrordepth_edge.machine import system as environment
from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.machine.driver import DriverVersion, driver_version, parse_driver_version, parse_kernel_driver
from mirrordepth_edge.machine.jetson import (
    JETSON_CLOCKS,
    NVPMODEL,
    Clock,
    PowerMode,
    fastest,
    fix_clocks_command,
    jetpack_of,
    parse_jetson_clocks,
    parse_nvpmodel,
    parse_power_modes,
    parse_power_status,
    run_command,
)
from mirrordepth_edge.machine.system import (
    Environment,
    Memory,
    Swap,
    SystemTensorRt,
    parse_cuda_toolkit,
    parse_memory,
    parse_package_version,
    parse_swaps,
    parse_venv,
    read_environment,
)
from mirrordepth_edge.machine.unavailable import Unavailable

SYSTEMS = Path(__file__).parents[1] / "fixtures" / "systems"
MACHINES = sorted(path.name for path in SYSTEMS.iterdir() if path.is_dir())
JETSONS = [name for name in MACHINES if name != "desktop"]


def grown(machine: str, root: Path) -> Path:
    """The files of a machine, under `root`."""
    text = (SYSTEMS / machine / "files.txt").read_text(encoding="utf-8")
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(body.replace("␀\n", "\0"), encoding="utf-8")
    return root


def printed(machine: str, command: str) -> str:
    return (SYSTEMS / machine / f"{command}.txt").read_text(encoding="utf-8")


def silent(command: Sequence[str]) -> str:
    raise FileNotFoundError(2, "No such file or directory", command[0])


def machine(name: str, tmp_path: Path) -> Environment:
    return read_environment(grown(name, tmp_path), silent)


@pytest.mark.parametrize(
    ("name", "jetpack"),
    [
        ("orin-nano", "6.2"),
        ("orin-nano-jetpack-7", "7.2.1"),
        ("orin-nx", "6.2.1"),
        ("agx-orin", "7.2"),
        ("thor", "7.1"),
    ],
)
def test_jetpack(name: str, jetpack: str, tmp_path: Path) -> None:
    assert machine(name, tmp_path).jetpack == jetpack


@pytest.mark.parametrize("name", ["orin-nano", "orin-nano-jetpack-7"])
def test_the_package_and_the_release_name_the_same_jetpack(name: str, tmp_path: Path) -> None:
    with_package = machine(name, tmp_path)
    assert isinstance(with_package.jetpack_package, str)
    (tmp_path / "var/lib/dpkg/status").unlink()
    without = read_environment(tmp_path, silent)
    assert isinstance(without.jetpack_package, Unavailable)
    assert without.jetpack == with_package.jetpack


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("36.4.3", "6.2"),
        ("36.4.0", "6.1"),
        ("36.4", "6.1"),
        ("36.4.7", "6.2.1 or newer"),  # came by apt, with no JetPack of its own
        ("36.5.2", "6.2.3"),
        ("38.2.2", "7.0 or newer"),
        ("39.9.0", "7.x"),
        ("35.4.1", "5.1.2"),
        ("32.7.1", None),
        ("40.0.0", None),
    ],
)
def test_jetpack_of_a_release(l4t: str, jetpack: str | None) -> None:
    assert jetpack_of(l4t) == jetpack


@pytest.mark.parametrize(
    ("name", "tensorrt", "cuda", "driver"),
    [
        ("orin-nano", "10.3.0.30-1+cuda12.5", "12.6.11", "540.4.0"),
        ("orin-nano-jetpack-7", "10.16.2.10-1+cuda13.2", "13.2.2", None),
        ("orin-nx", None, None, "540.4.0"),
        ("agx-orin", None, None, None),
        ("thor", "10.13.3.9-1+cuda13.0", "13.0.0", None),
        ("desktop", None, None, "575.57.08"),
    ],
)
def test_versions(name: str, tensorrt: str | None, cuda: str | None, driver: str | None, tmp_path: Path) -> None:
    environment = machine(name, tmp_path)
    for value, expected in (
        (environment.tensorrt_package, tensorrt),
        (environment.cuda_toolkit, cuda),
        (environment.driver, driver),
    ):
        assert value == expected if expected else isinstance(value, Unavailable)


ORIN = Gpu(name="Orin", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")


@pytest.mark.parametrize(
    ("name", "text"),
    [("orin-nano", "540.4.0, CUDA 12.6"), ("agx-orin", "CUDA 12.6"), ("desktop", "575.57.08, CUDA 12.6")],
)
def test_a_driver_version_survives_its_text(name: str, text: str, tmp_path: Path) -> None:
    version = driver_version(ORIN, grown(name, tmp_path))
    assert str(version) == text
    assert parse_driver_version(text) == version


@pytest.mark.parametrize(
    ("here", "built", "older"),
    [
        ("540.4.0, CUDA 12.6", "540.4.0, CUDA 12.6", False),
        ("540.3.0, CUDA 12.6", "540.4.0, CUDA 12.6", True),
        ("540.10.0, CUDA 12.6", "540.4.0, CUDA 12.6", False),
        ("CUDA 12.6", "540.4.0, CUDA 12.6", False),
        ("CUDA 12.6", "CUDA 12.8", True),
        ("540.4.0", "CUDA 13.0", False),
        ("", "540.4.0, CUDA 12.6", False),
    ],
)
def test_an_older_driver(here: str, built: str, older: bool) -> None:
    assert parse_driver_version(here).older_than(parse_driver_version(built)) is older
    assert not DriverVersion(kernel="", cuda="").older_than(parse_driver_version(built))


def test_a_package_that_was_removed_is_not_installed(tmp_path: Path) -> None:
    status = (grown("orin-nano-jetpack-7", tmp_path) / "var/lib/dpkg/status").read_text(encoding="utf-8")
    assert "Package: libnvinfer7\nStatus: deinstall" in status
    assert parse_package_version(status, "libnvinfer7") is None
    assert parse_package_version(status, "base-files") == "12ubuntu4.7"
    assert parse_package_version(status, "base") is None
    assert parse_package_version(status, "libnvinfer1.") is None


@pytest.mark.parametrize("name", ["orin-nano", "orin-nano-jetpack-7", "thor"])
def test_the_status_file_and_nvpmodel_give_the_same_mode(name: str, tmp_path: Path) -> None:
    mode = parse_nvpmodel(printed(name, "nvpmodel"))
    assert mode is not None
    assert machine(name, tmp_path).power_mode == mode


@pytest.mark.parametrize(
    ("modes", "command"),
    [
        ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n", "sudo nvpmodel -m 2 && "),
        ("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=15W >\n", "sudo nvpmodel -m 0 && "),
        (None, ""),
    ],
)
def test_fix_clocks_command_selects_the_fastest_mode(modes: str | None, command: str, tmp_path: Path) -> None:
    if modes is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/nvpmodel.conf").write_text(modes, encoding="utf-8")
    assert fix_clocks_command(tmp_path) == f"{command}sudo jetson_clocks"


def test_nvpmodel_runs_only_without_a_status_file(tmp_path: Path) -> None:
    asked = []

    def run(command: Sequence[str]) -> str:
        asked.append(tuple(command))
        return printed("agx-orin", "nvpmodel") if tuple(command) == NVPMODEL else silent(command)

    environment = read_environment(grown("agx-orin", tmp_path), run)
    assert environment.power_mode == PowerMode(number=0, name="MAXN")
    assert asked.count(NVPMODEL) == 1
    asked.clear()
    (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
    (tmp_path / "var/lib/nvpmodel/status").write_text("pmode:0003 fmode:cool\n", encoding="utf-8")
    assert read_environment(tmp_path, run).power_mode == PowerMode(number=3, name="MODE_50W")
    assert NVPMODEL not in asked


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        ValueError("nvpmodel failed: 234"),
        subprocess.TimeoutExpired("nvpmodel", 1.0),
    ],
)
def test_an_unavailable_mode_has_a_reason(error: Exception, tmp_path: Path) -> None:
    def run(command: Sequence[str]) -> str:
        raise error

    mode = read_environment(tmp_path, run).power_mode
    assert isinstance(mode, Unavailable)
    assert str(error) in mode.reason


@pytest.mark.parametrize(
    ("text", "number"), [("pmode:0002 fmode:quiet\n", 2), ("pmode:0000\n", 0), ("pmode:0012", 12), ("", None)]
)
def test_power_status(text: str, number: int | None) -> None:
    assert parse_power_status(text) == number


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("orin-nano", PowerMode(number=2, name="MAXN_SUPER")),
        ("orin-nx", PowerMode(number=0, name="MAXN_SUPER")),
        ("agx-orin", PowerMode(number=0, name="MAXN")),
        ("thor", PowerMode(number=0, name="MAXN")),
    ],
)
def test_the_fastest_mode_is_chosen_by_name(name: str, best: PowerMode, tmp_path: Path) -> None:
    assert fastest(machine(name, tmp_path).power_modes) == best


def test_modes_without_maxn_are_ordered_by_watts() -> None:
    conf = "# a comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=7W >\n"
    modes = parse_power_modes(conf)
    assert [mode.name for mode in modes] == ["15W", "7W"]
    assert fastest(modes) == modes[0]
    assert fastest(parse_power_modes("< POWER_MODEL ID=4 NAME=MODE_30W_ALL >\n< POWER_MODEL ID=5 NAME=MODE_9W >")) == (
        PowerMode(number=4, name="MODE_30W_ALL")
    )
    assert fastest(()) is None
    assert fastest([PowerMode(number=0, name="quiet")]) is None


@pytest.mark.parametrize("name", ["orin-nano", "orin-nano-jetpack-7", "agx-orin"])
def test_the_kernels_files_and_jetson_clocks_agree(name: str, tmp_path: Path) -> None:
    shown = [clock for clock in parse_jetson_clocks(printed(name, "jetson_clocks")) if clock.name != "EMC"]
    assert [clock.name for clock in shown] == ["CPU", "GPU"]
    assert list(machine(name, tmp_path).clocks) == shown


@pytest.mark.parametrize(
    ("name", "locked"),
    [
        ("orin-nano", {"CPU": False, "GPU": False, "EMC": False}),
        ("orin-nx", {"CPU": False, "GPU": False, "EMC": False}),
        ("agx-orin", {"CPU": True, "GPU": True, "EMC": True}),
        ("thor", {"CPU": True, "GPU": True, "EMC": True}),  # memory by FreqOverride, its range stays wide
    ],
)
def test_locked_clocks(name: str, locked: dict[str, bool]) -> None:
    clocks = parse_jetson_clocks(printed(name, "jetson_clocks"))
    assert {clock.name: clock.locked for clock in clocks} == locked


def test_thors_gpu_is_not_its_video_decoder(tmp_path: Path) -> None:
    (gpu,) = (clock for clock in machine("thor", tmp_path).clocks if clock.name == "GPU")
    assert gpu == Clock(name="GPU", low_mhz=315, high_mhz=1575, locked=False)
    (shown,) = (c for c in parse_jetson_clocks(printed("thor", "jetson_clocks")) if c.name == "GPU")
    assert shown.high_mhz == 1575


def test_cores_that_are_offline_do_not_count() -> None:
    text = "cpu0: Online=1 Governor=schedutil MinFreq=2000000 MaxFreq=2000000 CurrentFreq=1 IdleStates: WFI=0\n"
    off = "cpu1: Online=0 Governor=schedutil MinFreq=100000 MaxFreq=2000000 CurrentFreq=1 IdleStates: WFI=0\n"
    assert parse_jetson_clocks(text + off) == (Clock(name="CPU", low_mhz=2000, high_mhz=2000, locked=True),)
    assert parse_jetson_clocks("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n") == ()


def test_root_hears_of_the_memorys_clock_too(tmp_path: Path) -> None:
    def run(command: Sequence[str]) -> str:
        return printed("agx-orin", "jetson_clocks") if tuple(command) == JETSON_CLOCKS else silent(command)

    names = [clock.name for clock in read_environment(grown("agx-orin", tmp_path), run).clocks]
    assert names == ["CPU", "GPU", "EMC"]


def test_one_core_that_moves_unlocks_the_cpu(tmp_path: Path) -> None:
    grown("agx-orin", tmp_path)
    core = tmp_path / "sys/devices/system/cpu/cpu7/cpufreq"
    (core / "scaling_min_freq").write_text("115200\n", encoding="utf-8")
    (core / "scaling_governor").write_text("performance\n", encoding="utf-8")
    environment = read_environment(tmp_path, silent)
    cpu = environment.clocks[0]
    assert (cpu.name, round(cpu.low_mhz, 1), round(cpu.high_mhz, 1), cpu.locked) == ("CPU", 115.2, 2201.6, False)
    assert environment.governor == "performance, schedutil"


def test_memory_and_swap(tmp_path: Path) -> None:
    environment = machine("orin-nano", tmp_path / "nano")
    assert environment.memory == Memory(
        total_mib=7802736 // 1024, available_mib=6245596 // 1024, swap_mib=6 * 650264 // 1024
    )
    assert {(swap.kind, swap.size_mib) for swap in environment.swaps} == {("zram", 650264 // 1024)}
    assert len(environment.swaps) == 6
    assert machine("orin-nano-jetpack-7", tmp_path / "seven").swaps == ()
    (file,) = machine("desktop", tmp_path / "desktop").swaps
    assert file == Swap(name="/swap.img", kind="file", size_mib=8388604 // 1024, used_mib=0)
    assert parse_memory("MemTotal:  128000 kB\n") is None
    assert (
        parse_swaps("/dev/nvme0n1p3                          partition\t134217724\t32632196\t50\n")[0].used_mib == 31867
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_this_machines_memory() -> None:
    memory = read_environment(run=silent).memory
    assert isinstance(memory, Memory)
    here_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    assert 100 < memory.available_mib <= memory.total_mib <= here_mib  # a container may be told of less


def test_where_tensorrt_is(tmp_path: Path) -> None:
    (place,) = machine("orin-nano", tmp_path).system_tensorrt
    folder = tmp_path / "usr/lib/python3.10/dist-packages/tensorrt"
    assert place == SystemTensorRt(folder=str(folder), python="3.10")


def test_a_gpu_that_is_plugged_in(tmp_path: Path) -> None:
    assert machine("desktop", tmp_path).gpu_on_pci
    (tmp_path / "sys/bus/pci/devices/0000:01:00.0/class").write_text("0x040300\n", encoding="utf-8")  # its sound
    assert not read_environment(tmp_path, silent).gpu_on_pci


def test_an_empty_machine_has_a_reason_for_everything(tmp_path: Path) -> None:
    environment = read_environment(tmp_path, silent)
    for value in vars(environment).values():
        assert value in ((), False) or (isinstance(value, Unavailable) and value.reason)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage\n{", b"0\n" * 3])
def test_files_that_say_nonsense_do_no_harm(name: str, content: bytes, tmp_path: Path) -> None:
    grown(name, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(content)
    environment = read_environment(tmp_path, lambda command: content.decode(errors="replace"))
    assert environment.power_modes == ()
    assert isinstance(environment.jetpack, Unavailable)
    assert isinstance(environment.memory, Unavailable)


@pytest.mark.parametrize("name", MACHINES)
def test_a_folder_in_a_files_place_does_no_harm(name: str, tmp_path: Path) -> None:
    grown(name, tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        path.unlink()
        path.mkdir()
    assert isinstance(read_environment(tmp_path, silent).driver, Unavailable)


def test_texts_that_are_not_there() -> None:
    for text in ("", "[]", '{"cuda": 5}', '{"cuda": {}}', "{"):
        assert parse_cuda_toolkit(text) is None
    assert parse_kernel_driver("GCC version:  gcc version 13.3.0 \n") is None
    assert (
        parse_kernel_driver("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Wed Jan 22 2025\n")
        == "570.86.15"
    )
    assert parse_nvpmodel("NV Power Mode:\n") is None
    assert parse_nvpmodel("NV Power Mode: MODE_15W_6CORE\n2\n") == PowerMode(number=2, name="MODE_15W_6CORE")
    assert parse_nvpmodel("NVPM ERROR: failed to read PMODE!\n") is None
    assert parse_nvpmodel("NV Fan Mode:quiet\nNV Power Mode: MODE_50W\n3\n") == PowerMode(number=3, name="MODE_50W")


@pytest.mark.parametrize("included", [True, False])
def test_pyvenv_cfg_of_the_venv_module(included: bool, tmp_path: Path) -> None:
    venv.EnvBuilder(system_site_packages=included, with_pip=False, symlinks=True).create(tmp_path)
    assert parse_venv((tmp_path / "pyvenv.cfg").read_text(encoding="utf-8")) is included
    assert parse_venv("home = /usr/bin\n") is None


@pytest.mark.parametrize(
    ("base", "included", "sees"),
    [("/usr", True, True), ("/usr", False, False), ("/opt/conda", True, False), ("/usr", None, True)],
)
def test_this_python(
    base: str, included: bool | None, sees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyvenv.cfg").write_text(f"include-system-site-packages = {str(included).lower()}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "base_prefix", base)
    monkeypatch.setattr(sys, "prefix", base if included is None else str(tmp_path))
    python = environment.this_python()
    assert (python.venv, python.system_packages) == (included is not None, sees)
    assert python.abi.startswith(f"cp{sys.version_info.major}{sys.version_info.minor}")


def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(environment.disk_free_mib(tmp_path), int)
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(total=9 * 2**30, used=2**30, free=5 * 2**30)

    monkeypatch.setattr(environment.shutil, "disk_usage", usage)
    assert environment.disk_free_mib(tmp_path) == environment.disk_free_mib(tmp_path / "not" / "yet") == 5 * 2**10
    assert asked == [tmp_path, tmp_path]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell's commands")
def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(jetson, "COMMAND_TIMEOUT_S", 120)
    assert run_command(("echo", "NV Power Mode: 15W")) == "NV Power Mode: 15W\n"
    with monkeypatch.context() as patch:
        patch.setattr(jetson, "COMMAND_TIMEOUT_S", 0.1)
        with pytest.raises(subprocess.TimeoutExpired):
            run_command(("sleep", "600"))
    with pytest.raises(FileNotFoundError):
        run_command(("mirrordepth-no-such-command",))
    with pytest.raises(ValueError, match="false failed: 1"):
        run_command(("false",))
    with pytest.raises(ValueError, match="root only"):
        run_command(JETSON_CLOCKS)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ValueError, match="not run as root"):
        run_command(NVPMODEL)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell's commands")
def test_the_power_mode_of_an_nvpmodel_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(jetson, "COMMAND_TIMEOUT_S", 120)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    script = '#!/bin/sh\n[ "$*" = -q ] && echo "NV Power Mode: 25W" && echo 1\n'
    (tmp_path / "nvpmodel").write_text(script, encoding="utf-8")
    (tmp_path / "nvpmodel").chmod(0o755)
    assert jetson.read_power_mode(tmp_path) == PowerMode(number=1, name="25W")


@pytest.mark.parametrize("name", JETSONS)
def test_every_jetson_has_its_printed_texts(name: str) -> None:
    assert parse_nvpmodel(printed(name, "nvpmodel")) is not None
    assert {clock.name for clock in parse_jetson_clocks(printed(name, "jetson_clocks"))} == {"CPU", "GPU", "EMC"}
