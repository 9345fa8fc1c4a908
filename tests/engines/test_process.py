"""Errors of failed builds: unsupported operators, lack of memory or space, INT8 for CPUs."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.build import BuildPlan, build_engine
from mirrordepth_edge.engines.process import build_error, refuse_cpu_int8, run_builder
from mirrordepth_edge.engines.worker import _unwritable
from mirrordepth_edge.errors import DeviceError, InputError
from mirrordepth_edge.manifest import Quantisation, read_manifest, write_artefact
from mirrordepth_edge.support.worker import WorkerExit

LOG = (
    "[11/23/2026-06:14:58] [TRT] [E] ModelImporter.cpp:142: --- Begin node ---",
    "[11/23/2026-06:14:58] [TRT] [E] ModelImporter.cpp:143: --- End node ---",
    "[11/23/2026-06:14:58] [TRT] [E] ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:1130 In function checkDet:",
)


def request_of(onnx_path: Path | str, **changes: Any) -> dict[str, Any]:
    request = {
        "onnx": str(onnx_path),
        "plan": str(Path(tempfile.gettempdir()) / "tmpx" / "engine.plan"),
        "flavour": "tensorrt-rtx",
        "compute_capabilities": ["8.9"],
        "config": {},
        "layouts": {"image": "NCHW"},
        "timing_cache": None,
    }
    return {**request, **changes}


def explained(failed: str, lines: Sequence[str] = LOG) -> Any:
    end = WorkerExit(status=0, log=tuple(lines))
    return build_error(failed, end, request_of("/home/me/odd.onnx"), BuildConfig())


@pytest.mark.parametrize(
    ("failed", "why"),
    [
        ("node det (Det): false", "TensorRT does not support the operator Det, or not in this form (node det)."),
        ("node ? (Det): false", "TensorRT does not support the operator Det, or not in this form."),
        (
            "node a (b) (Det): false\nnode a (b) (Det): false\nnode rs (Resize): only (half_pixel): see\nthe manual",
            "TensorRT does not support the operator Det, or not in this form (node a (b)).\n"
            "TensorRT does not support the operator Resize, or not in this form (node rs): only (half_pixel): see\n"
            "the manual",
        ),
    ],
)
def test_parser_errors_become_sentences(failed: str, why: str) -> None:
    error = explained(failed)
    assert isinstance(error, InputError)
    assert error.why == why
    assert "mde export" in error.cure
    assert "mde run PICTURE --model /home/me/odd.onnx" in error.cure


def test_an_invalid_onnx_file_is_not_suggested_for_mde_run() -> None:
    error = explained("node ? (?): Assertion failed: Failed to parse the ONNX model.")
    assert error.why == "Assertion failed: Failed to parse the ONNX model."
    assert "mde run" not in error.cure


def test_out_of_memory_in_the_parser_is_not_an_unsupported_operator() -> None:
    assert isinstance(explained("node big (Conv): OutOfMemory (Requested size was 9 bytes.)"), DeviceError)


def test_an_error_of_the_builder_includes_its_log() -> None:
    error = explained("the builder failed: no engine", ["[E] no tactic for node 3"])
    assert error.why == "the builder failed: no engine\n[E] no tactic for node 3"
    assert "mde inspect /home/me/odd.onnx" in error.cure


@pytest.mark.parametrize("failed", ["node det (Det): false", "the builder failed", None])
def test_cures_name_only_existing_options(failed: str | None) -> None:
    from typer.main import get_command

    from mirrordepth_edge.cli import app

    known = {name for option in get_command(app).commands["build"].params for name in option.opts}  # type: ignore[attr-defined]
    error = build_error(failed, WorkerExit(status=1, log=LOG), request_of("odd.onnx"), BuildConfig())
    cure = error.cure.partition("mde run")[0]
    assert {word.strip(".,;") for word in cure.split() if word.startswith("--")} <= known


def write_model(path: Path, *nodes: onnx.NodeProto, depth: Sequence[int] = (1, 3, 3)) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 3])
    result = helper.make_tensor_value_info("depth", TensorProto.FLOAT, depth)
    ends = [
        numpy_helper.from_array(np.array(n, kind), name)
        for name, n, kind in (("s", 0.1, np.float32), ("z", 3, np.uint8))
    ]
    graph = helper.make_graph(nodes, "odd", [image], [result], ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_operator_that_the_real_parser_does_not_support(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    path = write_model(tmp_path / "odd.onnx", helper.make_node("Det", ["image"], ["depth"], name="det"), depth=(1,))
    with pytest.raises(InputError, match="cannot build") as caught:
        run_builder(request_of(path), BuildConfig())
    assert caught.value.why == "TensorRT does not support the operator Det, or not in this form (node det)."


def test_the_real_parser_refuses_zero_points(tmp_path: Path) -> None:
    """Why `refuse_cpu_int8` exists."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    pair = (
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["depth"], name="dq"),
    )
    with pytest.raises(InputError) as caught:
        run_builder(request_of(write_model(tmp_path / "uint8.onnx", *pair)), BuildConfig())
    assert "zero point" in caught.value.why.lower()
    assert "[E]" not in caught.value.why


@pytest.mark.parametrize("scheme", ["cpu", "gpu", None])
def test_int8_for_a_cpu_is_refused_before_a_builder_is_started(
    scheme: Literal["cpu", "gpu"] | None, tmp_path: Path
) -> None:
    source = read_manifest(NANO_ONNX["fp32"])
    if scheme is not None:
        quantisation = Quantisation(
            scheme=scheme,
            method="max",
            calibration="hall",
            calibration_sha256="0" * 64,
            calibration_frames=1,
            int8_nodes=(),
            fp_fallback=(),
            accuracy=None,
        )
        source = replace(source, precision="int8", quantisation=quantisation)
    if scheme != "cpu":
        refuse_cpu_int8(Path("nano.int8.onnx"), source)
        return
    written = tmp_path / "nano.cpu.onnx"
    write_artefact(written, NANO_ONNX["fp32"].read_bytes(), source)
    order = BuildPlan(flavour="tensorrt-rtx", compute_capabilities=("8.9",), runs_here=False)
    with pytest.raises(InputError, match="INT8 for a CPU"):
        build_engine(Artefact.open(written), tmp_path / "nano.plan", order)
    with pytest.raises(InputError, match="INT8 for a CPU") as caught:
        refuse_cpu_int8(Path("nano.cpu.onnx"), source)
    assert "without --target cpu" in caught.value.cure
    assert "mde run PICTURE --model nano.cpu.onnx" in caught.value.cure


def test_a_plan_that_does_not_fit_into_the_temporary_folder() -> None:
    """`-o` would not help: the plan is built in the temporary folder, and then moved."""
    request = request_of("/home/me/nano.onnx")
    error = _unwritable(request, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert error.why == os.strerror(errno.ENOSPC)
    assert "TMPDIR=/path mde build /home/me/nano.onnx" in error.cure
    assert str(Path(request["plan"]).parent) in error.cure
    assert "choose another folder" not in error.cure


def test_tmpdir_sets_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert Path(tempfile.gettempdir()) == tmp_path
