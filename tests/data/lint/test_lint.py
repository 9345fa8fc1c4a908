"""Data sets with known contents, good and damaged, and what is reported of them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.data.lint.problems import find_problems
from mirrordepth_edge.data.lint.scan import (
    NO_DEPTH_RGB,
    PERCENTILES,
    DepthStatistics,
    check_dataset,
    contact_sheet,
    report_lines,
    spread,
)
from mirrordepth_edge.data.sample import InMemory, Mapped, Sample, Selected

SHAPE = (60, 80)
Levels = npt.NDArray[np.uint16]


def write(root: Path, name: str, levels: npt.NDArray[np.generic], seed: int | None = None) -> None:
    """A picture of noise, different for each name, beside its depth as it is stored."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) if seed is None else seed)
    for folder, array in (("rgb", rng.integers(0, 256, (*SHAPE, 3), np.uint8)), ("depth", levels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / folder / f"{name}.png"), array)


def millimetres(seed: int) -> Levels:
    """Depth of 1 to 5 m, uniformly distributed; a tenth of the pixels has none."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(1000, 5001, SHAPE).astype(np.uint16)
    levels[rng.random(SHAPE) < 0.1] = 0
    return levels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        write(tmp_path, f"{index}", millimetres(index), seed=index)
    return tmp_path


def kinds(root: Path, units_per_metre: float = 1000.0) -> dict[str, bool]:
    """Kind of each problem, and whether it would break training."""
    findings = find_problems(check_dataset(folder_dataset(root, units_per_metre)))
    assert all(finding.what.endswith((".", "?")) and finding.why and finding.cure for finding in findings)
    return {finding.kind: finding.wrong for finding in findings}


def measured(change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.generic]], tmp_path: Path) -> DepthStatistics:
    """Problems of six images whose depth in millimetres was changed."""
    for index in range(6):
        depth_mm = np.random.default_rng(index).uniform(700, 9990, SHAPE)
        write(tmp_path, f"{index}", change(depth_mm).astype(np.uint16))
    depths = check_dataset(folder_dataset(tmp_path)).depths
    assert depths is not None
    return depths


def test_a_good_folder(root: Path) -> None:
    report = check_dataset(folder_dataset(root))
    assert find_problems(report) == ()
    assert (report.pictures, report.looked_at, report.sizes) == (6, 6, ((SHAPE, 6),))
    shares = {f"{index}": float((millimetres(index) > 0).mean()) for index in range(6)}
    assert report.valid_share == pytest.approx(np.mean(list(shares.values())))
    assert report.least_valid == min(shares.items(), key=lambda item: item[1])


def test_statistics_are_those_of_numpy(root: Path) -> None:
    depths = check_dataset(folder_dataset(root)).depths
    assert depths is not None
    seen_mm = np.concatenate([millimetres(index)[::2, ::2].ravel() for index in range(6)])
    seen_m = seen_mm[seen_mm > 0] / 1000
    expected = np.percentile(seen_m, PERCENTILES, method="inverted_cdf")
    assert list(depths.percentiles_m) == list(PERCENTILES)
    assert list(depths.percentiles_m.values()) == pytest.approx(expected, abs=1e-9)
    assert [(low, high) for low, high, _ in depths.histogram] == [(1, 1.5), (1.5, 2), (2, 3), (3, 5), (5, 7)][
        : len(depths.histogram)
    ]
    assert sum(share for _, _, share in depths.histogram) == pytest.approx(1)
    for low, high, share in depths.histogram[:3]:
        assert share == pytest.approx(((seen_m >= low) & (seen_m < high)).mean(), abs=2e-3)


def test_unusable_files_are_listed_with_reasons(root: Path) -> None:
    (root / "rgb" / "0.png").write_text("no picture")
    (root / "depth" / "1.png").write_bytes(b"")
    write(root, "2", np.full(SHAPE, 90, np.uint8))
    write(root, "3", np.full((30, 40), 2000, np.uint16))
    report = check_dataset(folder_dataset(root))
    reasons = {picture.name: picture.reason for picture in report.unusable}
    assert list(reasons) == ["0", "1", "2", "3"]
    for name, word in {"0": "cannot be read as an image", "1": "empty", "2": "uint8", "3": "differ in size"}.items():
        assert word in reasons[name]
    assert report.sizes == ((SHAPE, 2),), "the others are still read"
    assert kinds(root) == {"unusable": True}


def test_width_and_height_swapped(root: Path) -> None:
    for index in range(6):
        write(root, f"{index}", millimetres(index).T)
    report = check_dataset(folder_dataset(root))
    assert all(picture.swapped for picture in report.unusable)
    assert kinds(root) == {"swapped": True}
    # A part of the data, seen through something: the pair behind it is found all the same.
    seen = Selected(of=Mapped(of=folder_dataset(root), function=lambda sample: sample), indices=(4, 5))
    assert [(picture.name, picture.swapped) for picture in check_dataset(seen).unusable] == [("4", True), ("5", True)]


def test_samples_that_come_from_no_files() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    good = np.full(SHAPE, 2.5, np.float32)
    bad = [good.copy(), good.copy(), good.T.copy()]
    bad[0][3, 4], bad[1][0, 0] = np.nan, -1
    samples = tuple(Sample(f"{index}", frame, depth_m) for index, depth_m in enumerate((*bad, good)))
    report = check_dataset(InMemory(samples=samples))
    assert [picture.swapped for picture in report.unusable] == [False, False, True]
    assert "NaN" in report.unusable[0].reason
    assert report.depths is not None
    assert report.depths.units_per_metre is None
    assert report.depths.percentiles_m[50] == pytest.approx(2.5)
    assert check_dataset(InMemory(samples=())).pictures == 0


@pytest.mark.parametrize(
    ("stored", "read", "wrong"),
    [(1, 1000, True), (1000, 50_000, True), (1000, 1, True), (5000, 1000, False), (1000, 5000, False)],
)
def test_a_wrong_scale_names_the_right_one(stored: float, read: float, wrong: bool, tmp_path: Path) -> None:
    for index in range(6):
        depth_m = np.random.default_rng(index).uniform(1, 6, SHAPE)
        depth_m[:5] = 0
        write(tmp_path, f"{index}", np.round(depth_m * stored).astype(np.uint16))
    findings = find_problems(check_dataset(folder_dataset(tmp_path, read)))
    (scale,) = (finding for finding in findings if finding.kind == "scale")
    assert scale.wrong is wrong
    assert f"--units-per-metre {stored:g}" in scale.cure
    right = find_problems(check_dataset(folder_dataset(tmp_path, stored)))
    assert "scale" not in {finding.kind for finding in right}


def test_kitti_read_as_millimetres(root: Path) -> None:
    report = check_dataset(folder_dataset(root))
    assert report.depths is not None
    kitti = replace(report, sizes=(((375, 1242), 6),), valid_share=0.2)

    def read(units: float, median_m: float) -> list[str]:
        percentiles_m = {50: median_m, 99: 5 * median_m}
        depths = replace(report.depths, units_per_metre=units, percentiles_m=percentiles_m)
        return [finding.cure for finding in find_problems(replace(kitti, depths=depths))]

    assert read(1000.0, 3.4) == ["--units-per-metre 256"]
    assert read(256.0, 13.5) == []
    assert read(1000.0, 13.5) == [], "converted to millimetres before"


def test_the_largest_value_as_a_mark_of_none(root: Path) -> None:
    clean = check_dataset(folder_dataset(root)).depths
    for index in range(6):
        levels = millimetres(index)
        levels[levels == 0] = 65535
        write(root, f"{index}", levels, seed=index)
    report = check_dataset(folder_dataset(root))
    assert kinds(root) == {"marker": True}
    assert report.depths is not None
    assert clean is not None
    assert report.depths.marker_share == pytest.approx(0.1, abs=0.02)
    assert report.depths.percentiles_m == clean.percentiles_m
    assert report.valid_share == pytest.approx(0.9, abs=0.02)


def test_depth_that_ends_in_one_value(tmp_path: Path) -> None:
    depths = measured(partial(np.minimum, 9000), tmp_path)
    assert depths.largest_m == 9.0
    assert depths.share_at_largest == pytest.approx(0.99 / 9.29, abs=0.02)
    assert kinds(tmp_path)["saturated"]


def test_depth_in_eight_bits(tmp_path: Path) -> None:
    """8-bit depth, as in common copies of NYU: 255 steps of 39 mm."""
    depths = measured(lambda depth_mm: np.round(np.round(depth_mm / 9995 * 255) * 9995 / 255), tmp_path)
    assert depths.step_m == pytest.approx(9.995 / 255, abs=5e-4)
    assert depths.values <= 255
    assert kinds(tmp_path) == {"quantised": False, "in-filled": False}


def test_depth_in_centimetres(tmp_path: Path) -> None:
    depths = measured(lambda depth_mm: np.round(depth_mm / 10) * 10, tmp_path)
    assert depths.step_m == pytest.approx(0.01)
    assert depths.values > 256


def test_steps_that_grow_with_distance_are_not_quantisation(tmp_path: Path) -> None:
    """A structured-light camera measures eighths of a pixel of disparity: focal 580 px, baseline 75 mm."""
    depths = measured(lambda mm: np.round(580 * 75 / (np.round(8 * 580 * 75 / mm) / 8)), tmp_path)
    assert depths.values < 500
    assert depths.step_m is None
    assert "quantised" not in kinds(tmp_path)


def test_blank_images_and_copies(root: Path) -> None:
    write(root, "1", np.zeros(SHAPE, np.uint16), seed=1)
    write(root, "5", millimetres(5), seed=4)
    cv2.imwrite(str(root / "rgb" / "2.png"), np.zeros((*SHAPE, 3), np.uint8))
    cv2.imwrite(str(root / "rgb" / "3.png"), np.full((*SHAPE, 3), (20, 90, 200), np.uint8))
    report = check_dataset(folder_dataset(root))
    assert report.without_depth == ("1",)
    assert report.blank == ("2", "3")
    assert report.copies == (("5", "4"),)
    assert report.least_valid == ("1", 0.0)
    assert kinds(root) == {"no-depth": False, "blank": False, "copies": False}


def test_no_depth_anywhere(root: Path) -> None:
    for index in range(6):
        write(root, f"{index}", np.zeros(SHAPE, np.uint16))
    report = check_dataset(folder_dataset(root))
    assert report.depths is None
    assert kinds(root) == {"no-depth": True}
    assert any("0.0% of the pixels" in line for line in report_lines(report))


def test_several_sizes_are_only_a_note(root: Path) -> None:
    cv2.imwrite(str(root / "rgb" / "big.png"), np.random.default_rng(9).integers(0, 256, (90, 160, 3), np.uint8))
    cv2.imwrite(str(root / "depth" / "big.png"), np.random.default_rng(9).integers(1000, 5000, (90, 160), np.uint16))
    assert check_dataset(folder_dataset(root)).sizes == ((SHAPE, 6), ((90, 160), 1))
    assert kinds(root) == {"sizes": False}


def test_registration_verdicts_become_problems(root: Path) -> None:
    report = check_dataset(folder_dataset(root))

    def said(**changes: object) -> tuple[str, str]:
        registration = replace(report.registration, pictures=20, correlation=0.2, correlation_as_is=0.05, **changes)
        big = replace(report, registration=registration, sizes=(((480, 640), 20),))
        (finding,) = find_problems(big)
        assert finding.wrong is (registration.verdict == "unregistered")
        return finding.what, finding.cure

    what, cure = said(verdict="unregistered", pose="as it is", shift=(-12 / 640, 3 / 640))
    assert "shifted 12 pixels left and 3 pixels down" in what
    assert "rs.align" in cure
    what, cure = said(verdict="unregistered", pose="mirrored", shift=(0, 0))
    assert what.endswith("it fits best mirrored.")
    assert "depth[:, ::-1]" in cure
    assert "mixed up" in said(verdict="nowhere")[0]


def test_subset_and_progress(root: Path) -> None:
    assert spread(795, None) == tuple(range(795))
    assert spread(3, 12) == (0, 1, 2)
    assert spread(10, 1) == (0,)
    assert spread(100, 5) == (0, 25, 50, 74, 99)
    seen: list[int] = []

    def track(indices):  # type: ignore[no-untyped-def]
        for index in indices:
            seen.append(index)
            yield index

    report = check_dataset(folder_dataset(root), (1, 4), track)
    assert seen == [1, 4]
    assert (report.pictures, report.looked_at, report.sizes) == (6, 2, ((SHAPE, 2),))


def test_the_sheet_shows_depth_and_its_holes(root: Path) -> None:
    (root / "rgb" / "0.png").write_text("no picture")
    dataset = folder_dataset(root)
    report = check_dataset(dataset)
    sheet = contact_sheet(dataset, range(6), report)
    assert sheet is not None
    red = (sheet == NO_DEPTH_RGB).all(-1)
    # Five pictures of three times the size; a tenth of their pixels was not measured.
    holes = sum(int((millimetres(index) == 0).sum()) for index in range(1, 6))
    assert red.sum() == holes * 3 * 3
    assert contact_sheet(dataset, (0,), report) is None
    assert contact_sheet(dataset, range(6), replace(report, depths=None)) is None


def test_report_lines(root: Path) -> None:
    text = "\n".join(report_lines(check_dataset(folder_dataset(root))))
    assert "80x60  6 images" in text
    assert re.search(r"3 to 5 m   (49|50)\.\d% █{40}\n", text)
    assert re.search(r" 50 %: (2\.9|3\.0)\d m,", text)
    assert "too few scenes or edges" in text
    assert text.count("█" * 40) == 1
