"""Evaluation against closed forms: predictors that are wrong in a known way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.cli import run_app
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation import Protocol, evaluate
from mirrordepth_edge.metrics import Depth, garg_crop
from mirrordepth_edge.preprocess import Frame

PROTOCOL = Protocol(limits_m=(1e-3, 10.0))


def sample(seed: int, shape: tuple[int, int] = (48, 64)) -> Sample:
    """A picture whose red channel is its depth in decimetres, left to right unlike right to left."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(5, 95, (*shape, 3), dtype=np.uint8)
    return Sample(str(seed), frame, frame[..., 0].astype(np.float32) / 10)


def right(frame: Frame) -> Depth:
    return frame[..., 0].astype(np.float32) / 10


def test_a_perfect_predictor() -> None:
    mean = evaluate(right, [sample(0), sample(1)], PROTOCOL).mean
    assert (mean.abs_rel, mean.rmse, mean.delta1) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_a_wrong_scale_is_metric_error_and_no_error_once_aligned(factor: float) -> None:
    def scaled(frame: Frame) -> Depth:
        return right(frame) * np.float32(factor)

    far = replace(PROTOCOL, limits_m=(1e-3, 20.0))
    assert evaluate(scaled, [sample(0)], far).mean.abs_rel == pytest.approx(abs(factor - 1), rel=1e-5)
    for align in ("median", "lsq"):
        aligned = evaluate(scaled, [sample(0)], replace(far, align=align)).mean  # type: ignore[arg-type]
        assert aligned.abs_rel == pytest.approx(0, abs=1e-5)


def test_a_shift_is_only_removed_by_least_squares() -> None:
    def shifted(frame: Frame) -> Depth:
        return 0.5 * right(frame) + np.float32(1)

    assert evaluate(shifted, [sample(0)], replace(PROTOCOL, align="median")).mean.abs_rel > 0.1
    assert evaluate(shifted, [sample(0)], replace(PROTOCOL, align="lsq")).mean.abs_rel < 1e-5


def test_flip_averaging_uses_both_and_mirrors_back() -> None:
    seen: list[Frame] = []

    def remembers(frame: Frame) -> Depth:
        seen.append(frame.copy())
        return right(frame)

    one = sample(0)
    assert evaluate(remembers, [one], replace(PROTOCOL, flip=True)).mean.abs_rel < 1e-6
    np.testing.assert_array_equal(seen[0], one.frame)
    np.testing.assert_array_equal(seen[1], one.frame[:, ::-1])


def test_each_picture_counts_once() -> None:
    """A picture with few valid pixels weighs as much as a full one."""
    full, sparse = sample(0), sample(1)
    sparse.depth_m[2:] = 0

    def wrong_on_sparse(frame: Frame) -> Depth:
        return right(frame) * np.float32(1.2 if np.array_equal(frame, sparse.frame) else 1.0)

    result = evaluate(wrong_on_sparse, [full, sparse], replace(PROTOCOL, limits_m=(1e-3, 20.0)))
    assert result.mean.abs_rel == pytest.approx(0.1, rel=1e-5)
    assert [picture.valid_pixels for picture in result.pictures] == [48 * 64, 2 * 64]


def test_nothing_to_evaluate() -> None:
    with pytest.raises(InputError, match="nothing to average"):
        evaluate(right, [], PROTOCOL)


def test_garg_crop_is_the_published_window() -> None:
    mask = garg_crop((352, 1216))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (rows[0], rows[-1] + 1) == (int(0.40810811 * 352), int(0.99189189 * 352)) == (143, 349)
    assert (columns[0], columns[-1] + 1) == (int(0.03594771 * 1216), int(0.96405229 * 1216)) == (43, 1172)
    assert mask.sum() == (349 - 143) * (1172 - 43)


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (PROTOCOL, "no crop, 0.001 to 10 m, no flip averaging; metric"),
        (replace(PROTOCOL, crop="eigen", flip=True), "Eigen crop, 0.001 to 10 m, flip averaging; metric"),
        (replace(PROTOCOL, align="median"), "NOT METRIC"),
    ],
)
def test_a_protocol_says_what_it_does(protocol: Protocol, words: str) -> None:
    assert words in str(protocol)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(2):
        one = sample(index)
        for kind, picture in (("rgb", one.frame[..., ::-1]), ("depth", (one.depth_m * 1000).astype(np.uint16))):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "set" / kind / f"{index}.png"), picture)
    return tmp_path / "set"


def test_command_compares_models_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder.parent / "errors.json"
    arguments = ["evaluate", "--root", str(folder), "--device", "cpu", "--json", str(output), "nano", "nano.fp16"]
    assert run_app(arguments) == 0
    text = capsys.readouterr().out
    assert "2 pictures; no crop, 0.001 to 10 m" in text
    data = json.loads(output.read_text())
    assert list(data) == ["nano", "nano.fp16"]
    assert len(data["nano"]["pictures"]) == 2
    assert data["nano"]["mean"]["abs_rel"] == pytest.approx(data["nano.fp16"]["mean"]["abs_rel"], rel=2e-2)


@pytest.mark.parametrize(("option", "value"), [("--crop", "half"), ("--align", "mean")])
def test_command_refuses_unknown_protocols(
    option: str, value: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["evaluate", "--root", str(folder), option, value]) == 2
    assert f"{option} {value!r} is unknown" in capfd.readouterr().err


def test_the_eigen_crop_refuses_other_sizes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(["evaluate", "--root", str(folder), "--crop", "eigen"]) == 1
    assert "480x640" in capfd.readouterr().err
