"""The HTML page of a self-test: results, reasons and escaping."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from mirrordepth_edge.bench.selftest_result import (
    STEPS,
    Device,
    Effort,
    Figure,
    GpuFacts,
    SelfTest,
    Step,
    Subject,
    SubjectResult,
)
from mirrordepth_edge.report.selftest import ROW_HEADER, selftest_page, support_rows, verdict

NASTY = '<script>alert("x")</script>&'
DEVICE = Device(
    board="NVIDIA Jetson Orin Nano Developer Kit",
    cpu="aarch64",
    cores=6,
    memory_mib=7620,
    gpus=(GpuFacts(name="Orin", compute_capability="8.7", memory_mib=7620, cuda="12.6"),),
    system="Linux 5.15.148",
    architecture="aarch64",
    python="3.10.12",
    jetpack="6.2",
    l4t="36.4.3",
    driver="540.4.0",
    cuda_toolkit="12.6.68",
    tensorrt_package="10.3.0.30-1+cuda12.5",
    power_mode="MAXN_SUPER",
    clocks=("GPU 1020 to 1020 MHz, locked",),
    governor="schedutil",
    runtimes={"tensorrt": "10.3.0", "onnxruntime": "1.23.2"},
    absent={"openvino": "the package openvino is not installed"},
    packages={"numpy": "1.26.4"},
)


def figures(**values: tuple[float, str]) -> dict[str, Figure]:
    return {name.replace("_", " "): Figure(value=value, unit=unit) for name, (value, unit) in values.items()}


def ran(subject: Subject) -> SubjectResult:
    steps = (
        Step(name="make", outcome="passed", figures=figures(size=(7.36, "MB"))),
        Step(name="build", outcome="passed", figures=figures(build=(91.4, "s"))),
        Step(name="verify", outcome="passed", figures=figures(mean_relative_against_PyTorch=(0.0021, ""))),
        Step(name="bench", outcome="passed", figures=figures(p50=(3.456, "ms"), p99=(4.5, "ms")), notes=("too hot",)),
        Step(name="stream", outcome="passed", figures=figures(age_p50=(5.678, "ms"))),
        Step(name="soak", outcome="passed", figures=figures(runs=(8000, ""))),
    )
    return SubjectResult(subject=subject, backend="tensorrt", backend_version="10.3.0", device="Orin", steps=steps)


def broke(subject: Subject, reason: str) -> SubjectResult:
    steps = (
        Step(name="make", outcome="passed"),
        Step(name="build", outcome="failed", reason=reason),
        *(Step(name=name, outcome="skipped", reason="build did not pass") for name in list(STEPS)[2:]),
    )
    return SubjectResult(subject=subject, steps=steps)


def left_out(subject: Subject, reason: str) -> SubjectResult:
    return SubjectResult(subject=subject, steps=(Step(name="make", outcome="skipped", reason=reason),))


NANO = Subject(model="nano", precision="fp16")
VIT = Subject(model="vitb16", precision="int8")


def result(*tested: SubjectResult, no_engine: str | None = None) -> SelfTest:
    return SelfTest(
        mirrordepth_edge="0.1.0",
        made="2026-01-31",
        quick=False,
        seconds=90.0,
        effort=Effort(),
        device=DEVICE,
        no_engine=no_engine,
        tested=tested,
    )


def words(page: str) -> str:
    """The visible text, in one line."""
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def test_the_page_has_what_the_support_matrix_needs() -> None:
    text = words(selftest_page(result(ran(NANO))))
    for phrase in (
        "NVIDIA Jetson Orin Nano Developer Kit",
        "JetPack 6.2, driver 540.4.0, TensorRT 10.3.0",
        "nano FP16 in tensorrt",
        "make, build, verify, bench, stream, soak",
        "0.1.0, 2026-01-31",
        "compute capability 8.7",
        "10.3.0.30-1+cuda12.5",
        "MAXN_SUPER",
        "GPU 1020 to 1020 MHz, locked",
        *ROW_HEADER,
    ):
        assert phrase in text, phrase
    assert "All passed: nano FP16." in text
    assert "3.46 ms" in text
    assert "age 5.68 ms" in text
    assert "took 91.4 s" in text
    assert "mean 2.1e-03" in text
    assert "bench: too hot" in text
    assert "Failures" not in text
    assert "Skipped" not in text


def test_rows_of_the_support_matrix() -> None:
    rows = support_rows(result(ran(NANO), broke(VIT, "no"), left_out(VIT, "no PyTorch")))
    assert len(rows) == 2, "a skipped subject has no row"
    named, failed = (dict(zip(ROW_HEADER, row, strict=True)) for row in rows)
    assert named == {
        "device": "NVIDIA Jetson Orin Nano Developer Kit",
        "software": "JetPack 6.2, driver 540.4.0, TensorRT 10.3.0, ONNX Runtime 1.23.2",
        "model": "nano FP16 in tensorrt",
        "passed": "make, build, verify, bench, stream, soak",
        "p50 (ms)": "3.46",
        "age p50 (ms)": "5.68",
        "tested with": "0.1.0, 2026-01-31",
    }
    assert (failed["passed"], failed["p50 (ms)"]) == ("make, build failed", "")


def test_failed_and_skipped_steps_have_reasons() -> None:
    page = selftest_page(result(broke(NANO, "The parser refused it."), left_out(VIT, "PyTorch is not installed")))
    text = words(page)
    assert "Failures" in text
    assert "Skipped" in text
    assert "Failed: nano FP16." in text
    assert "nano FP16, build The parser refused it." in text
    assert "vitb16 INT8: PyTorch is not installed" in text
    assert "did not pass" not in text, "that follows from what failed"


@pytest.mark.parametrize(
    ("tested", "no_engine", "expected"),
    [
        ((ran(NANO),), None, "All passed: nano FP16."),
        ((ran(NANO), broke(VIT, "no")), None, "Failed: vitb16 INT8. Passed: nano FP16."),
        ((left_out(NANO, "no"),), "no GPU", "No engine was run."),
        (
            (ran(replace(NANO, no_engine="no GPU")),),
            "no GPU",
            "No engine was run, only ONNX files: nano FP16 passed.",
        ),
    ],
)
def test_the_verdict(tested: tuple[SubjectResult, ...], no_engine: str | None, expected: str) -> None:
    whole = result(*tested, no_engine=no_engine)
    assert verdict(whole) == expected
    text = words(selftest_page(whole))
    assert expected in text
    assert (f"{expected} no GPU" in text) == (no_engine is not None)


def test_text_is_escaped_and_there_are_no_external_resources() -> None:
    nasty = ran(NANO)
    steps = tuple(replace(step, notes=(NASTY,)) for step in nasty.steps)
    whole = result(replace(nasty, steps=steps, device=NASTY), broke(VIT, NASTY), no_engine=NASTY)
    page = selftest_page(replace(whole, device=replace(DEVICE, board=NASTY, absent={NASTY: NASTY})), command=NASTY)
    assert "<script" not in page
    assert NASTY in unescape(page)
    assert not re.search(r"(?:src|href)=", page)


def test_a_machine_without_known_facts() -> None:
    bare = replace(
        DEVICE, board=None, gpus=(), memory_mib=None, jetpack=None, l4t=None, driver=None, power_mode=None, clocks=()
    )
    text = words(selftest_page(replace(result(left_out(NANO, "no")), device=bare)))
    assert "Self-test: aarch64, 6 cores" in text
    assert "None" not in text
    assert "JetPack" not in text
