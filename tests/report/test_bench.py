"""The card of a benchmark: its values are the results', everything that speaks against them is told, once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mirrordepth_edge import __version__
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.stats import LatencyWarning, Ratio, summarise
from mirrordepth_edge.bench.stream import MaxSustainedRate, StreamResult, Trial
from mirrordepth_edge.config import BenchConfig
from mirrordepth_edge.machine.device import Machine
from mirrordepth_edge.machine.telemetry import SensorReading, SensorValue, Telemetry
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.manifest import Parity
from mirrordepth_edge.report.bench import REMAINDER, bench_page
from mirrordepth_edge.report.telemetry import SENSORS

NASTY = '<script>alert("x")</script>&'
NO_NVML = Unavailable(reason="No module named 'pynvml'")
CLOCKS = "Fix the clocks (board: first command; desktop: second command, with a value of its own)"
MACHINE = Machine(
    system="Linux", architecture="x86_64", python="3.11.7", cpu="a CPU", cores=2, gpus=(), jetson=None, l4t=None
)


class Tables(HTMLParser):
    """The text of every table's cells."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


def rows_of(page: str, header: str) -> dict[str, list[str]]:
    """The table whose heading has this word: its rows by their first cells."""
    (table,) = (table for table in Tables(page).tables if header in table[0])
    return {row[0]: row[1:] for row in table}


def reading(mean: float, unit: str) -> SensorReading:
    return SensorReading(mean=mean, least=mean / 2, most=mean * 2, unit=unit, samples=28)


def telemetry(**changes: object) -> Telemetry:
    """A CPU's, without other sensors."""
    said: dict[str, SensorValue | object] = dict.fromkeys(SENSORS, NO_NVML)
    said |= {"cpu": reading(40.0, "%"), "cpu_clock": reading(2000.0, "MHz"), "governor": "performance"}
    said |= {"temperatures": {"soc": reading(51.25, "°C")}, "rails": Unavailable(reason="no INA3221")}
    return Telemetry(seconds=5.0, own_ms=3.0, **{**said, **changes})  # type: ignore[arg-type]


def result(name: str = "a.onnx", scale: float = 1.0, shared: Telemetry | None = None, frames: int = 200) -> BenchResult:
    random = np.random.default_rng(7)
    samples_ms = scale * np.array([2.0, 15.0, 1.0]) * random.uniform(0.9, 1.1, (frames, 3))
    stages = ("preprocess", "network", "postprocess")
    return BenchResult(
        artefact=name,
        artefact_sha256="ab" * 32,
        backend="fake",
        backend_version="1.2.3",
        device="cpu",
        precision="fp16",
        boundary="640x480 frame to 640x480 metres",
        config=BenchConfig(iterations=frames),
        machine=MACHINE,
        warmup=60,
        latency=summarise(samples_ms.sum(axis=1)),
        stages={stage: summarise(own) for stage, own in zip(stages, samples_ms.T, strict=True)},
        device_stages={},
        agreement=None,
        findings=[],
        telemetry=shared or telemetry(),
        overhead_us=0.43,
        samples_ms=samples_ms,
    )


def pair() -> list[BenchResult]:
    shared = telemetry()
    return [result("a.onnx", 1.0, shared), result("b.onnx", 1.5, shared)]


def test_it_is_one_file_that_loads_nothing(loads_nothing: Callable[[str], bool]) -> None:
    page = bench_page(pair(), [Ratio(1.5, 1.4, 1.6)], command="mde bench")
    assert loads_nothing(page)
    for word in ("<script", "http://", "https://"):
        assert word not in page


def test_figures_are_those_of_the_frames() -> None:
    results = pair()
    rows = rows_of(bench_page(results), "a.onnx")
    assert rows[""] == ["a.onnx", "b.onnx"]
    for place, one in enumerate(results):
        total_ms = one.samples_ms.sum(axis=1)
        expected = {
            "p50 (ms)": np.median(total_ms),
            "mean (ms)": total_ms.mean(),
            "min (ms)": total_ms.min(),
            "p90 (ms)": np.percentile(total_ms, 90),
            "p95 (ms)": np.percentile(total_ms, 95),
            "p99 (ms)": np.percentile(total_ms, 99),
            "p99.9 (ms)": np.percentile(total_ms, 99.9),
            "max (ms)": total_ms.max(),
        }
        assert {label: rows[label][place] for label in expected} == {
            label: f"{value:.2f}" for label, value in expected.items()
        }
        low, high = one.latency.p50_interval_ms
        assert rows["95 % interval of p50 (ms)"][place] == f"{low:.2f} to {high:.2f}"
        assert rows["throughput (frames/s)"][place] == f"{1000 / total_ms.mean():.1f}"
        assert rows["coefficient of variation (%)"][place] == f"{100 * total_ms.std() / total_ms.mean():.1f}"
    assert rows["timed frames"] == ["200", "200"]
    assert rows["warm-up frames"] == ["60", "60"]


def test_short_times_have_three_decimals_and_many_frames_no_note(page_of: type) -> None:
    quick = result("q", scale=0.1, frames=1000)
    page = bench_page([quick])
    assert rows_of(page, "q")["p50 (ms)"] == [f"{np.median(quick.samples_ms.sum(axis=1)):.3f}"]
    assert "close to the maximum" not in page
    assert "close to the maximum" in bench_page([result(frames=999)])


def test_the_headline(page_of: type) -> None:
    text = page_of(bench_page([result(), replace(result("b.plan"), device="Orin")], made="today")).text
    assert "a.onnx, FP16 fake 1.2.3 on a CPU, 2 cores" in text
    assert "b.plan, FP16 fake 1.2.3 on Orin" in text
    assert f"Made today by mirrordepth-edge {__version__}" in text


def test_ratios_are_described(page_of: type) -> None:
    three = [*pair(), result("c.onnx")]
    text = page_of(bench_page(three, [Ratio(1.5, 1.46, 1.54), Ratio(1.001, 0.99, 1.01)])).text
    assert "b.onnx: 1.50 times as long as a.onnx (95 % interval 1.46 to 1.54)." in text
    assert "c.onnx: no significant difference: 1.00 times as long as a.onnx" in text
    assert "times as long" not in page_of(bench_page(three)).text


def test_stages_add_up_and_share_a_scale(page_of: type) -> None:
    results = pair()
    read = page_of(bench_page(results))
    pieces = [re.fullmatch(r"width: ([\d.]+)%", span.get("style", "")) for span in read.all("span")]
    widths = [float(found[1]) for found in pieces if found]
    a_ms, b_ms = (one.samples_ms.mean(axis=0) for one in results)
    assert widths == pytest.approx(100 * np.concatenate([a_ms, b_ms]) / b_ms.sum(), abs=1e-3)
    assert f"a.onnx: {a_ms.sum():.2f} ms" in read.text
    assert f"network {b_ms[1]:.2f} ms ({100 * b_ms[1] / b_ms.sum():.0f} %)" in read.text


def test_device_stages_are_below_the_network(page_of: type) -> None:
    one = result("a.plan")
    means_ms = one.samples_ms.mean(axis=0)
    own_ms = {"host to device": 1.0, "compute": 9.0, "device to host": 0.5}
    on_device = {stage: summarise(np.full(200, each)) for stage, each in own_ms.items()}
    page = bench_page([replace(one, device_stages=on_device)])
    text = page_of(page).text
    assert "a.plan, on the GPU's clock" in text
    assert "compute 9.00 ms" in text
    assert f"{REMAINDER} {means_ms[1] - 10.5:.2f} ms" in text
    (start,) = re.findall(r"margin-left: ([\d.]+)%\" role=\"img\" aria-label=\"parts of a.plan, on", page)
    assert float(start) == pytest.approx(100 * means_ms[0] / means_ms.sum(), abs=1e-3)
    # If the result itself is on that clock, there is no second bar.
    alone = replace(one, stages=on_device, device_stages=on_device)
    assert "on the GPU's clock" not in page_of(bench_page([alone])).text
    network = replace(one, stages={"network": one.stages["network"]}, samples_ms=one.samples_ms[:, 1:2])
    assert "Time per stage" not in page_of(bench_page([network])).text


def test_every_frame_is_a_dot(page_of: type) -> None:
    drawn = {path["class"]: path["d"] for path in page_of(bench_page(pair())).all("path")}
    for colour in ("s0", "s1"):
        beyond = drawn.get(f"beyond {colour}", "").count("M")
        assert drawn[f"points {colour}"].count("M") + beyond == 200


def test_warnings_are_grouped_by_cure(page_of: type) -> None:
    first, second = pair()
    results = [
        replace(first, findings=[LatencyWarning("unsteady", "A is unsteady.", f"Close programs. {CLOCKS}, or wait.")]),
        replace(
            second,
            findings=[
                LatencyWarning("unsteady", "B is unsteady.", f"Close programs. {CLOCKS}, or wait."),
                LatencyWarning("drift", "B drifts.", f"Cool down. {CLOCKS}."),
            ],
        ),
    ]
    text = page_of(bench_page(results)).text
    for words in ("a.onnx: A is unsteady.", "b.onnx: B is unsteady.", "b.onnx: B drifts.", "Close programs."):
        assert text.count(words) == 1, words
    assert text.count("first command") == 1
    assert text.count("Fix the clocks (as above)") == 1
    assert text.index("A is unsteady") < text.index("Close programs") < text.index("B drifts") < text.index("Cool")
    assert "These results are unreliable" in text
    assert "None. Latencies are steady" not in text
    fine = page_of(bench_page(pair())).text
    assert "These results are unreliable" not in fine
    assert "None. Latencies are steady" in fine


def test_telemetry(page_of: type) -> None:
    throttled = {"power cap": reading(12.0, "%"), "temperature (driver)": NO_NVML}
    page = bench_page([result(shared=telemetry(gpu_throttle=throttled, governor="powersave"))])
    rows, text = rows_of(page, "samples"), page_of(page).text
    assert rows["CPU load, all processes"] == ["40.0 %", "20.0 %", "80.0 %", "28"]
    assert rows["CPU clock"] == ["2000 MHz", "1000 MHz", "4000 MHz", "28"]
    assert rows["temperature: soc"] == ["51.2 °C", "25.6 °C", "102.5 °C", "28"]
    assert rows["GPU throttling: power cap"][0] == "12.0 %"
    assert "CPU governor powersave" in text
    assert "The CPU governor is 'powersave', not 'performance'." in text
    assert "The GPU was throttled (power cap) in 12 % of the samples." in text
    assert "During the 5.00 s of the timed frames." in text


def test_unavailable_sensors_have_reasons(page_of: type) -> None:
    page = bench_page([result(shared=telemetry(power_mode=Unavailable(reason="nvpmodel is not run as root")))])
    text = page_of(page).text
    (details,) = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    folded = page_of(details).text
    assert folded.count(NO_NVML.reason) == 1
    assert "power mode: nvpmodel is not run as root" in folded
    assert "power rail: no INA3221" in folded
    shown = set(rows_of(page, "samples")) | {"CPU governor", "temperature"}
    for label in set(SENSORS.values()) - shown:
        assert label in folded, label
    assert "Energy per frame is unknown: no INA3221; No module named 'pynvml'." in text


def test_every_sensor_has_a_name() -> None:
    assert set(SENSORS) == {field.name for field in fields(Telemetry)} - {"seconds", "own_ms"}
    assert len(set(SENSORS.values())) == len(SENSORS)


def test_energy_is_that_of_all_frames_of_the_run(page_of: type) -> None:
    """10 W for 5 s and 400 frames."""
    shared = telemetry(gpu_power=reading(10.0, "W"))
    text = page_of(bench_page([result("a", shared=shared), result("b", shared=shared)])).text
    assert text.count("Energy: 0.125 J per frame, drawn by the GPU board (NVML), idle power included; mean") == 1
    apart = page_of(bench_page([result("a", shared=shared), result("b")])).text
    assert "Energy: 0.25 J per frame" in apart
    assert apart.count("During the 5.00 s") == 2


def test_depth_check(page_of: type) -> None:
    known = Parity(
        runner="fake 1 against PyTorch", frames=3, max_relative=0.0123, mean_relative=4e-5, limit="mean <= 0.002"
    )
    text = page_of(bench_page([replace(result(), agreement=known), result("b.onnx")])).text
    assert (
        "a.onnx: fake 1 against PyTorch, on 3 frames: relative difference of depth: maximum 0.012, mean 4e-05 "
        "(limit: mean <= 0.002)." in text
    )
    assert "b.onnx: depth is finite and above 0 m" in text


def test_method(page_of: type) -> None:
    one, two = pair()
    text = page_of(bench_page([one, replace(two, warmup=80)])).text
    for words in (
        "Timed section: 640x480 frame to 640x480 metres.",
        "Warm-up: 60 and 80 untimed frames (until times settled, at most 400).",
        "Overhead of the loop: 0.43 µs per frame",
        "moving-block bootstrap",
        "interleaved",
    ):
        assert words in text, words
    alone = page_of(bench_page([replace(one, config=BenchConfig(warmup=60))])).text
    assert "Warm-up: 60 untimed frames (as requested)." in alone
    assert "interleaved" not in alone


def test_reproduction(page_of: type) -> None:
    page = bench_page([result()], command='mde bench --engine "my model.onnx"')
    text = page_of(page).text
    for words in ('mde bench --engine "my model.onnx"', "ab" * 32, "fake 1.2.3 on cpu, FP16", "a CPU, 2 cores"):
        assert words in text, words
    assert f"mirrordepth-edge {__version__}" in text
    assert f"numpy {np.__version__}" in text
    assert "<pre>" not in bench_page([result()])


def test_text_from_outside_is_escaped(page_of: type) -> None:
    shared = telemetry(
        gpu=Unavailable(reason=f"{NASTY}1"), rails={f"{NASTY}2": reading(1, "W")}, power_mode=f"{NASTY}3"
    )
    one = replace(
        result(f"{NASTY}0", shared=shared),
        findings=[LatencyWarning("drift", f"{NASTY}4", f"{NASTY}5")],
        device=f"{NASTY}6",
        backend=f"{NASTY}7",
    )
    page = bench_page([one], command=f"{NASTY}8")
    text = page_of(page).text
    assert "<script" not in page
    for place in range(9):
        assert f"{NASTY}{place}" in text, place


def test_equal_names_are_numbered() -> None:
    page = bench_page([result("m.onnx"), result("m.onnx", 1.5), result("n.onnx")])
    assert rows_of(page, "m.onnx (1)")[""] == ["m.onnx (1)", "m.onnx (2)", "n.onnx"]


def streamed(rate_hz: float, information_ms: float | None) -> StreamResult:
    return StreamResult(
        rate_hz=rate_hz,
        frames=10,
        results=8,
        dropped=2,
        deadline_miss_rate=0.25,
        age_p50_ms=18.25,
        age_p99_ms=30.5,
        age_of_information_p50_ms=information_ms,
        age_of_information_p99_ms=information_ms,
        jitter_ms=1.25,
        taken=np.arange(8),
        ages_ms=np.linspace(10, 30, 8),
        results_ms=np.linspace(33, 333, 8),
    )


def test_live_camera(page_of: type) -> None:
    peak = MaxSustainedRate(rate_hz=47.26, max_deadline_miss_rate=0.01, tried=(Trial(10.0, 0.0), Trial(60.0, 0.5)))
    page = bench_page([result()], streams=[streamed(30, 33.4), streamed(60, None)], peak=peak)
    rows, read = rows_of(page, "at 30 frames/s"), page_of(page)
    assert rows[""] == ["at 30 frames/s", "at 60 frames/s"]
    assert rows["frames"][0] == "10"
    assert rows["dropped frames"][0] == "2"
    assert rows["deadlines missed (%)"][0] == "25.0"
    assert rows["age of results, p50 (ms)"][0] == "18.25"
    assert rows["age of results, p99 (ms)"][0] == "30.50"
    assert rows["age of information, p50 (ms)"] == ["33.40", "too few results"]
    assert rows["jitter (ms)"][0] == "1.25"
    assert "Highest sustained rate: 47.3 frames/s (limit: 1 % of deadlines missed)." in read.text
    assert "60.0 frames/s: 50.0 % of deadlines missed" in read.text
    assert len(read.all("svg")) == 3
    assert "0 0.1 0.2 0.3 0.4 time, s age of the result, ms" in read.text
    *_, ages = (path["d"] for path in read.all("path") if path["class"] == "points s0")
    assert ages.count("M") == 8


def test_no_sustained_rate(page_of: type) -> None:
    peak = MaxSustainedRate(rate_hz=None, max_deadline_miss_rate=0.01, tried=(Trial(0.8, 1.0),))
    assert (
        "No rate was sustained. The lowest rate tried is 0.8 frames/s"
        in page_of(bench_page([result()], peak=peak)).text
    )
    assert "Live camera" not in page_of(bench_page([result()])).text
