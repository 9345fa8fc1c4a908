"""Every backend, on every artefact it opens, keeps the contract of `backends.base`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX, Artefact
from mirrordepth_edge.backends.base import Available, Session
from mirrordepth_edge.backends.registry import MODULES, backend, open_session
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.machine.unavailable import Unavailable

CPU = SessionOptions(device="cpu", threads=2)
ON_GPU_ONLY = ("tensorrt", "tensorrt-rtx")
CASES = (*MODULES, "openvino fp16")
"""Backends, and what some of them open beside their first artefact."""


def backend_of(case: str) -> str:
    return case.split()[0]


def options_for(case: str) -> SessionOptions:
    return SessionOptions() if case in ON_GPU_ONLY else replace(CPU, backend=backend_of(case))


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file a case; plans only where a GPU can run them."""
    models = {"torch": NANO_CHECKPOINT, "onnxruntime": NANO_ONNX["fp32"]}
    models |= {"openvino": NANO_ONNX["fp32"], "openvino fp16": NANO_ONNX["fp16"]}
    for name, target in (("tensorrt", "here"), ("tensorrt-rtx", None)):
        if isinstance(backend(name).probe(), Available):
            from mirrordepth_edge.engines.build import build_engine, plan_build

            plan = tmp_path_factory.mktemp("plans") / f"{name}.plan"
            build_engine(Artefact.open(NANO_ONNX["fp16"]), plan, plan_build(target))
            models[name] = plan
    return models


@pytest.fixture(params=[pytest.param(case, marks=pytest.mark.gpu) if case in ON_GPU_ONLY else case for case in CASES])
def session(request: pytest.FixtureRequest, artefacts: dict[str, Path]) -> Any:
    probe = backend(backend_of(request.param)).probe()
    if isinstance(probe, Unavailable):
        pytest.skip(f"{request.param}: {probe.reason}")
    opened, _ = open_session(artefacts[request.param], options_for(request.param))
    with opened:
        yield opened


def feeds_of(session: Session, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.integers(0, 256, spec.shape).astype(spec.dtype) for spec in session.inputs}


def test_names_and_specs(session: Session) -> None:
    assert session.backend in MODULES
    assert session.device
    assert session.precision in ("fp32", "fp16")
    (image,), (depth,) = session.inputs, session.outputs
    assert (image.name, image.dtype, image.layout) == ("image", "uint8", "NHWC")
    assert (depth.name, depth.dtype, depth.unit) == ("depth", "float32", "metres")


def test_depth_is_finite_positive_and_repeatable(session: Session) -> None:
    feeds = feeds_of(session)
    first = session.infer(feeds)["depth"].copy()
    assert first.shape == session.outputs[0].shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert (first > 0).all()
    np.testing.assert_array_equal(session.infer(feeds)["depth"], first)


def test_new_pixels_in_the_same_buffer_give_new_depth(session: Session) -> None:
    feeds = feeds_of(session)
    first = session.infer(feeds)["depth"].copy()
    feeds["image"][:] = 255 - feeds["image"]
    assert not np.array_equal(session.infer(feeds)["depth"], first)


def test_another_buffer_is_read(session: Session) -> None:
    first = session.infer(feeds_of(session, 0))["depth"].copy()
    second = session.infer(feeds_of(session, 1))["depth"].copy()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(session.infer(feeds_of(session, 0))["depth"], first)


def test_outputs_are_allocated_once(session: Session) -> None:
    feeds = feeds_of(session)
    assert session.infer(feeds)["depth"] is session.infer(feeds)["depth"]


def test_wrong_feeds_are_refused(session: Session) -> None:
    good = feeds_of(session)["image"]
    bad: list[dict[str, Any]] = [
        {},
        {"picture": good},
        {"image": good, "more": good},
        {"image": good.astype(np.float32)},
        {"image": good[:, :-32]},
        {"image": good[..., ::-1]},
    ]
    for feeds in bad:
        with pytest.raises(InputError, match="do not match"):
            session.infer(feeds)


def test_closing_twice_is_fine(session: Session) -> None:
    session.close()
    session.close()


@pytest.mark.parametrize("name", MODULES)
def test_probe_gives_a_version_or_a_cure(name: str) -> None:
    probe = backend(name).probe()
    if isinstance(probe, Available):
        assert probe.version
        assert probe.devices
    else:
        assert probe.reason
        assert probe.cure


def test_backends_agree_on_depth(artefacts: dict[str, Path]) -> None:
    depths = {}
    for case, path in artefacts.items():
        if isinstance(backend(backend_of(case)).probe(), Unavailable):
            continue
        with open_session(path, options_for(case))[0] as session:
            depths[case] = session.infer(feeds_of(session))["depth"].copy()
    if len(depths) < 2:
        pytest.skip("one backend alone has nothing to agree with")
    reference = depths.get("onnxruntime")
    assert reference is not None
    for case, depth in depths.items():
        relative = np.abs(depth - reference) / reference
        assert relative.mean() < 2e-3, case


def test_unknown_backend() -> None:
    with pytest.raises(OptionError, match="Unknown backend 'coreml'"):
        backend("coreml")


def test_a_device_asked_for_by_name_is_not_replaced() -> None:
    from mirrordepth_edge.machine.device import nvidia_gpus

    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingError, match="cannot use the GPU"):
        open_session(NANO_ONNX["fp32"], SessionOptions(device="cuda"))


def test_onnx_runtime_lets_go_of_the_cores_only_where_another_session_is_next() -> None:
    from mirrordepth_edge.artefact import NANO_ONNX
    from mirrordepth_edge.backends.onnxruntime import create_inference_session

    for yields in (False, True):
        options = create_inference_session(NANO_ONNX["fp32"], replace(CPU, yields=yields)).get_session_options()
        if yields:
            assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        else:
            with pytest.raises(RuntimeError):  # it was not set
                options.get_session_config_entry("session.force_spinning_stop")
