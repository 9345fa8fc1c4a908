"""Sensors: trees of an Orin and of a desktop as their kernels show them, and texts in turn instead of real load."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrordepth_edge.machine import sampler as module
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.machine.sensors.jetson import power_rails
from mirrordepth_edge.machine.sensors.linux import (
    parse_clocks_mhz,
    parse_cpu_times,
    parse_memory_mib,
    parse_own_ticks,
    thermal_zones,
)
from mirrordepth_edge.machine.sensors.nvml import first_cuda_gpu, throttle_reasons
from mirrordepth_edge.machine.telemetry import SensorReading, Telemetry
from mirrordepth_edge.machine.unavailable import Unavailable

Wait = Callable[[Callable[[], object]], None]
ORIN = {
    "proc/stat": "cpu  1000 0 500 8000 100 0 0 0 0 0\ncpu0 1000 0 500 8000 100 0 0 0 0 0\nintr 1 2 3\n",
    "proc/self/stat": "77 (mde) S 1 77 77 0 -1 4194304 100 0 0 0 300 20 0 0 20 0 4 0 100 3133440 413\n",
    "proc/self/status": "Name:\tmde\nVmPeak:\t 999999 kB\nVmHWM:\t  614400 kB\nVmRSS:\t  524288 kB\n",
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "48781\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/in1_label": "not a rail\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1600\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr2_input": "500\n",
    "sys/class/hwmon/hwmon1/in3_label": "NC\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
    "sys/class/devfreq/17000000.gpu/device/load": "853\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
}
DESKTOP = {
    "proc/stat": "cpu  5000 10 900 90000 200 0 30 0 0 0\n",
    "proc/self/stat": ORIN["proc/self/stat"],
    "proc/self/status": ORIN["proc/self/status"],
    "proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 3400.000\n\nprocessor\t: 1\ncpu MHz\t\t: 1400.000\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "27800\n",
    "sys/class/thermal/thermal_zone1/type": "acpitz\n",
    "sys/class/thermal/thermal_zone1/temp": "29800\n",
}


class NvmlError(Exception):
    """As NVML's, which know nothing of OSError."""


class FakeNvml:
    """The calls of nvidia-ml-py that the sampler makes, of one GPU that its power cap holds down at times."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, count: int = 1) -> None:
        self.count, self.asked, self.refused, self.shut = count, 0, 0, 0

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"index {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return f"uuid {uuid}"

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return 1980

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:  # noqa: N802
        return 250_000

    def nvmlDeviceGetTemperature(self, gpu: str, sensor: int) -> int:  # noqa: N802
        self.refused += 1
        raise NvmlError("Not Supported")

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=3 * 2**30, total=8 * 2**30)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:  # noqa: N802
        self.asked += 1
        return 0x1 | (0x4 if self.asked % 2 else 0)


def no_nvml() -> Any:
    raise ImportError("No module named 'pynvml'")


def mode_15w(command: Sequence[str]) -> str:
    return "NV Fan Mode:quiet\nNV Power Mode: 15W\n2\n"


def no_nvpmodel(command: Sequence[str]) -> str:
    raise FileNotFoundError(2, "No such file or directory", command[0])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return grown(tmp_path / "orin", ORIN)


def grown(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def by_hand(root: Path, **stand_ins: Any) -> TelemetrySampler:
    """A sampler that has looked for its sensors and whose samples the test takes itself."""
    sampler = TelemetrySampler(root, **{"nvml": no_nvml, "run": no_nvpmodel, **stand_ins})
    sampler.find_sensors()
    return sampler


def mean(value: object) -> float:
    assert isinstance(value, SensorReading), value
    return value.mean


def reason(value: object) -> str:
    assert isinstance(value, Unavailable), value
    return value.reason


def group(value: object) -> dict[str, Any]:
    assert isinstance(value, dict), value
    return value


def test_an_orin(tree: Path) -> None:
    sampler = by_hand(tree, run=mode_15w)
    sampler.sample()
    seen = sampler.telemetry()
    assert mean(seen.cpu_clock) == pytest.approx((1510.4 + 729.6) / 2)
    assert mean(seen.memory) == 512
    assert mean(seen.memory_peak) == 600
    assert mean(seen.gpu) == pytest.approx(85.3)
    assert mean(seen.gpu_clock) == pytest.approx(624.75)
    assert {name: mean(value) for name, value in group(seen.rails).items()} == {
        "VDD_IN": pytest.approx(8.0),
        "VDD_CPU_GPU_CV": pytest.approx(2.5),
    }
    assert {name: mean(value) for name, value in group(seen.temperatures).items()} == {
        "cpu-thermal": pytest.approx(51.25),
        "gpu-thermal": pytest.approx(48.781),
    }
    assert seen.governor == "schedutil"
    assert seen.power_mode == "15W"
    assert "pynvml" in reason(seen.gpu_power)
    assert "pynvml" in reason(seen.gpu_throttle)
    remarks = " | ".join(seen.remarks())
    assert "'schedutil'" in remarks
    assert "'15W'" in remarks


@pytest.mark.parametrize(
    ("clock", "load"),
    [
        ("sys/class/devfreq/17000000.ga10b/cur_freq", "sys/devices/gpu.0/load"),
        ("sys/class/devfreq/17000000.gv11b/cur_freq", "sys/devices/platform/gpu.0/load"),
        ("sys/class/devfreq/17000000.gpu/cur_freq", "sys/devices/platform/bus@0/17000000.gpu/load"),
    ],
)
def test_a_jetson_gpu_by_its_other_names(clock: str, load: str, tmp_path: Path) -> None:
    sampler = by_hand(grown(tmp_path, {clock: "918000000\n", load: "42\n"}))
    sampler.sample()
    assert mean(sampler.telemetry().gpu_clock) == pytest.approx(918)
    assert mean(sampler.telemetry().gpu) == pytest.approx(4.2)


def test_a_jetsons_files_go_before_its_nvml(tree: Path) -> None:
    sampler = by_hand(tree, nvml=FakeNvml)
    sampler.sample()
    seen = sampler.telemetry()
    assert mean(seen.gpu) == pytest.approx(85.3)
    assert mean(seen.gpu_power) == 250
    assert seen.power[0] == "module (VDD_IN)"
    assert mean(seen.power[1]) == pytest.approx(8.0)


def test_a_desktop(tmp_path: Path) -> None:
    nvml = FakeNvml()
    sampler = by_hand(grown(tmp_path, DESKTOP), nvml=lambda: nvml)
    for _ in range(4):
        sampler.sample()
    seen = sampler.telemetry()
    assert mean(seen.cpu_clock) == 2400
    assert mean(seen.gpu) == 97
    assert mean(seen.gpu_clock) == 1980
    assert mean(seen.gpu_power) == 250
    assert mean(seen.gpu_memory) == 3072
    assert reason(seen.gpu_temperature) == "Not Supported"
    assert nvml.refused == 1
    assert mean(group(seen.gpu_throttle)["power cap"]) == 50
    assert mean(group(seen.gpu_throttle)["temperature (driver)"]) == 0
    assert set(group(seen.temperatures)) == {"acpitz", "acpitz (thermal_zone1)"}
    assert "no INA3221" in reason(seen.rails)
    assert "no cpufreq" in reason(seen.governor)
    assert "nvpmodel" in reason(seen.power_mode)
    assert "the GPU was throttled (power cap) in 50 % of the samples" in seen.remarks()
    assert not any("temperature" in remark for remark in seen.remarks())


def test_a_machine_without_any_sensor(tmp_path: Path) -> None:
    sampler = by_hand(tmp_path)
    sampler.sample()
    seen = sampler.telemetry()
    for name in (*module.FIELDS, "governor", "power_mode"):
        assert reason(getattr(seen, name)), name
    assert "proc/stat" in reason(seen.cpu)
    assert reason(seen.joules)
    assert seen.remarks() == []


def test_load_of_other_processes_is_separate(tree: Path) -> None:
    sampler = by_hand(tree)
    sampler.sample()
    # Of 200 ticks ours took 60, others 90, a hypervisor 10.
    write_ticks(tree, user=1100, system=550, idle=8040, steal=10, own=(350, 30))
    sampler.sample()
    # Of 200 more ours took 100, others none.
    write_ticks(tree, user=1200, system=550, idle=8140, steal=10, own=(450, 30))
    sampler.sample()
    seen = sampler.telemetry()
    assert seen.cpu_others == SensorReading(mean=22.5, least=0.0, most=45.0, unit="%", samples=2)
    assert seen.cpu == SensorReading(mean=62.5, least=50.0, most=75.0, unit="%", samples=2)
    assert seen.cpu_steal == SensorReading(mean=2.5, least=0.0, most=5.0, unit="%", samples=2)
    # 22.5 and 2.5 go to the even number.
    assert "other processes used 22 % of the CPU during the run" in seen.remarks()
    assert "the hypervisor gave 2 % of the CPU to other machines" in seen.remarks()


def test_our_own_load_is_not_held_against_others(tree: Path) -> None:
    sampler = by_hand(tree)
    sampler.sample()
    # Counts lag each other by a tick: ours are 101 of the 100 busy ones.
    write_ticks(tree, user=1100, system=500, idle=8000, steal=0, own=(401, 20))
    sampler.sample()
    seen = sampler.telemetry()
    assert mean(seen.cpu) == 100
    assert mean(seen.cpu_others) == 0
    assert not any("other processes" in remark for remark in seen.remarks())


def test_less_than_a_tick_is_no_sample(tree: Path) -> None:
    sampler = by_hand(tree)
    sampler.sample()
    # Our own count may move before that of the cores: it still belongs to the interval that follows.
    write_ticks(tree, user=1000, system=500, idle=8000, steal=0, own=(310, 20))
    sampler.sample()
    assert "too short" in reason(sampler.telemetry().cpu)
    write_ticks(tree, user=1050, system=500, idle=8050, steal=0, own=(320, 20))
    sampler.sample()
    assert sampler.telemetry().cpu == SensorReading(mean=50.0, least=50.0, most=50.0, unit="%", samples=1)
    assert mean(sampler.telemetry().cpu_others) == 30


def write_ticks(root: Path, *, user: int, system: int, idle: int, steal: int, own: tuple[int, int]) -> None:
    stat = f"cpu  {user} 0 {system} {idle} 100 0 0 {steal} 0 0\n"
    mine = f"77 (m d) e) S 1 77 77 0 -1 4194304 100 0 0 0 {own[0]} {own[1]} 0 0 20 0 4 0 100 3133440 413\n"
    grown(root, {"proc/stat": stat, "proc/self/stat": mine})


def test_a_clock_that_moves(tree: Path) -> None:
    clock = tree / "sys/class/devfreq/17000000.gpu/cur_freq"
    sampler = by_hand(tree)
    for hertz in (1_000_000_000, 920_000_000):
        clock.write_text(str(hertz), encoding="utf-8")
        sampler.sample()
    assert not any("clock varied" in remark for remark in sampler.telemetry().remarks())
    clock.write_text("306000000", encoding="utf-8")
    sampler.sample()
    assert "the GPU clock varied between 306 and 1000 MHz" in sampler.telemetry().remarks()
    assert not any("the CPU clock" in remark for remark in sampler.telemetry().remarks())


def test_a_sensor_that_fails_is_absent_and_the_others_stay(tree: Path) -> None:
    sampler = by_hand(tree)
    sampler.sample()
    (tree / "sys/class/thermal/thermal_zone0/temp").write_text("", encoding="utf-8")
    (tree / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    sampler.sample()
    (tree / "sys/class/thermal/thermal_zone0/temp").write_text("50000", encoding="utf-8")
    sampler.sample()
    seen = sampler.telemetry()
    assert "after 1 samples" in reason(group(seen.temperatures)["cpu-thermal"])
    assert group(seen.temperatures)["gpu-thermal"].samples == 3
    assert "curr1_input: No such file" in reason(group(seen.rails)["VDD_IN"])
    assert group(seen.rails)["VDD_CPU_GPU_CV"].samples == 3
    assert "curr1_input" in reason(seen.joules)


def test_energy_is_the_modules_watts_by_the_runs_seconds(tree: Path, wait_until: Wait) -> None:
    with TelemetrySampler(tree, 0.01, nvml=no_nvml, run=mode_15w) as sampler:
        wait_until(lambda: isinstance(sampler.telemetry().joules, float))
        time.sleep(0.05)
    seen = sampler.telemetry()
    assert seen.seconds >= 0.05
    assert seen.joules == pytest.approx(8.0 * seen.seconds)
    assert seen.joules_per_frame(4) == pytest.approx(2.0 * seen.seconds)
    assert "no frames" in reason(seen.joules_per_frame(0))
    assert sampler.telemetry() == seen


def test_an_agx_has_rails_and_no_total(tree: Path) -> None:
    grown(tree, {"sys/class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC\n"})
    sampler = by_hand(tree)
    sampler.sample()
    assert "no rail VDD_IN among VDD_GPU_SOC, VDD_CPU_GPU_CV" in reason(sampler.telemetry().joules)


def test_sampling_this_machine_and_its_own_cost(tmp_path: Path, wait_until: Wait) -> None:
    root = Path("/") if Path("/proc/self/status").exists() else tmp_path
    with TelemetrySampler(root, 0.02, nvml=no_nvml, run=no_nvpmodel) as sampler:
        if root == Path("/"):
            wait_until(lambda: getattr(sampler.telemetry().memory, "samples", 0) >= 2)
    seen = sampler.telemetry()
    if root == Path("/"):
        assert 1 < mean(seen.memory) <= mean(seen.memory_peak) + 1
        assert isinstance(seen.memory, SensorReading)
        assert seen.memory.samples >= 2
    assert 0 < seen.own_ms < 1e3 * seen.seconds
    plain = json.loads(json.dumps(seen.to_json(), allow_nan=False))
    assert plain["joules_of"] == "nothing"
    assert plain["remarks"] == seen.remarks()
    assert set(Telemetry.__dataclass_fields__) <= set(plain)


def test_a_short_run_has_a_remark(tree: Path) -> None:
    with TelemetrySampler(tree, nvml=no_nvml, run=no_nvpmodel) as sampler:
        pass
    assert any("too short" in remark for remark in sampler.telemetry().remarks())


def test_an_interrupt_passes_and_leaves_nothing_behind(tree: Path) -> None:
    nvml = FakeNvml()
    with (
        pytest.raises(KeyboardInterrupt),
        TelemetrySampler(tree, 60.0, nvml=lambda: nvml, run=mode_15w) as sampler,
    ):
        raise KeyboardInterrupt
    sampler._thread.join(120)
    assert not sampler._thread.is_alive()
    assert nvml.shut == 1
    assert sampler.telemetry().power_mode == "15W"


def test_a_sensor_that_hangs_holds_nothing_up(tree: Path) -> None:
    hanging = threading.Event()

    class Hanging(FakeNvml):
        def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:  # noqa: N802
            hanging.wait(600)
            return 1

    with TelemetrySampler(tree, nvml=Hanging, run=mode_15w) as sampler:
        assert sampler._thread.daemon
        before = time.perf_counter()
        sampler.__exit__(None, None, None)
        waited = time.perf_counter() - before
    hanging.set()
    sampler._thread.join(120)
    assert not sampler._thread.is_alive()
    assert waited < 120  # 0.05 s, and room for a busy machine; far from the sensor's 600


def test_nothing_before_the_start(tree: Path) -> None:
    seen = TelemetrySampler(tree).telemetry()
    assert "not started" in reason(seen.cpu)
    assert "not started" in reason(seen.rails)
    assert seen.remarks() == []


@pytest.mark.parametrize(
    ("environment", "count", "handle"),
    [
        ({}, 1, "index 0"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f6d,GPU-11"}, 2, "uuid GPU-8f6d"),
        ({"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 2, "index 1"),
    ],
)
def test_the_gpu_that_cuda_takes(environment: dict[str, str], count: int, handle: str) -> None:
    assert first_cuda_gpu(FakeNvml(count), environment) == handle


@pytest.mark.parametrize(
    ("environment", "count", "why"),
    [
        ({}, 2, "CUDA_DEVICE_ORDER"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, "no GPU"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1, "no GPU"),
    ],
)
def test_a_gpu_that_may_be_another_is_not_measured(environment: dict[str, str], count: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        first_cuda_gpu(FakeNvml(count), environment)


def test_throttling_in_words() -> None:
    assert throttle_reasons(0x0) == throttle_reasons(0x1) == []
    assert throttle_reasons(0x4 | 0x20) == ["power cap", "temperature (driver)"]


def test_the_bits_are_nvmls() -> None:
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    named = {
        "SwPowerCap": "power cap",
        "HwSlowdown": "hardware slowdown",
        "SwThermalSlowdown": "temperature (driver)",
        "HwThermalSlowdown": "temperature (hardware)",
        "HwPowerBrakeSlowdown": "power brake",
        "SyncBoost": "sync boost",
        "ApplicationsClocksSetting": "application clock setting",
        "DisplayClockSetting": "display clock setting",
    }
    for name, word in named.items():
        assert throttle_reasons(getattr(nvml, f"nvmlClocksThrottleReason{name}")) == [word]
    for name in vars(FakeNvml):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(nvml, name), name


def test_parsers() -> None:
    times = parse_cpu_times("cpu  3172873 492674 324394 1686957 15806 0 4573 270663 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert times.busy == 3172873 + 492674 + 324394 + 4573
    assert times.steal == 270663
    assert times.total == times.busy + times.steal + 1686957 + 15806
    assert parse_memory_mib("VmSize:\t 10 kB\nVmRSS:\t    1536 kB\n", "VmRSS") == 1.5
    assert parse_clocks_mhz(DESKTOP["proc/cpuinfo"]) == [3400.0, 1400.0]
    assert parse_clocks_mhz(ORIN["proc/cpuinfo"]) == []
    with pytest.raises(ValueError, match="all CPUs"):
        parse_cpu_times("intr 1\n")
    with pytest.raises(ValueError, match="cut short"):
        parse_own_ticks("77 (mde) S 1\n")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_own_ticks_are_the_systems_process_times() -> None:
    before = os.times()
    ticks = parse_own_ticks(Path("/proc/self/stat").read_text(encoding="utf-8"))
    after = os.times()
    a_second = os.sysconf("SC_CLK_TCK")
    assert before.user + before.system - 0.03 <= ticks / a_second <= after.user + after.system + 0.03


def test_sensors_of_a_file_tree(tree: Path, tmp_path: Path) -> None:
    assert set(power_rails(tree)) == {"VDD_IN", "VDD_CPU_GPU_CV"}
    assert power_rails(tmp_path / "none") == {}
    assert thermal_zones(tmp_path / "none") == {}
