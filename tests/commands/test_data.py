"""`mde data check`: what is printed and written, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.cli import run_app


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Fourteen good pairs."""
    rng = np.random.default_rng(0)
    for index in range(14):
        depth = rng.integers(1000, 5000, (48, 64)).astype(np.uint16)
        depth[:6] = 0
        for folder, array in (("rgb", rng.integers(0, 256, (48, 64, 3), np.uint8)), ("depth", depth)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "set" / folder / f"{index:02d}.png"), array)
    return tmp_path / "set"


def test_a_good_set(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, result = tmp_path / "new" / "check.png", tmp_path / "new" / "check.json"
    assert run_app(["data", "check", str(root), "--sheet", str(sheet), "--json", str(result)]) == 0
    text = capsys.readouterr().out
    for words in ("14 of 14 images", "64x48", "87.5% of the pixels", "3 to 5 m", "50 %: ", "no problems found"):
        assert words in text
    assert cv2.imread(str(sheet)).shape[2] == 3
    everything = json.loads(result.read_text())
    assert everything["findings"] == []
    assert everything["sizes"] == [[[48, 64], 14]]
    assert everything["depths"]["percentiles_m"]["50"] == pytest.approx(3.0, abs=0.1)


def test_everything_is_printed_before_it_fails(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        (root / "rgb" / f"{index:02d}.png").write_text("no picture")
    result = tmp_path / "check.json"
    assert run_app(["data", "check", str(root), "--units-per-metre", "100000", "--json", str(result)]) == 1
    printed = capsys.readouterr()
    assert (
        printed.out.count("cannot be read as an image. It is") == 10 + 1
    )  # ten, and the first once more in the finding
    assert "and 2 more" in printed.out
    assert "wrong: 12 of 14 images cannot be used" in printed.out
    assert "--units-per-metre 1000" in printed.out
    message = " ".join(printed.err.split())
    assert "has 2 problems that would break training" in message
    assert "next: Repair or remove them" in message
    everything = json.loads(result.read_text())
    assert len(everything["unusable"]) == 12
    assert [finding["kind"] for finding in everything["findings"]] == ["unusable", "scale"]


def test_some_of_the_pictures(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["data", "check", str(root), "--limit", "3"]) == 0
    assert "3 of 14 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--part", "dev"], 2, "train or test"),
        (["--sheet", "check.jpg"], 2, "--sheet check.png"),
        (["--data", "sun"], 2, "auto, folder, nyu or kitti"),
        (["--limit", "0"], 2, "--limit"),
    ],
)
def test_options_that_make_no_sense(
    root: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["data", "check", str(root), *arguments]) == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_no_set_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["data", "check", str(tmp_path / "absent")]) == 1
    assert "next:" in capsys.readouterr().err
