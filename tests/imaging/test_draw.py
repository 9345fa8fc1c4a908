"""Colour scales, titles, images side by side, and image and video files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.imaging import draw
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.imaging.preprocess import Frame

INK = np.array(draw.INK, np.uint8)
LIMITS_M = (0.1, 10.0)


def tick_rows(bar: Frame, bar_px: int = draw.BAR_WIDTH_PX) -> list[int]:
    return [int(row) for row in np.flatnonzero((bar[:, bar_px] == INK).all(-1))]


def colour_of(value: float, limits: tuple[float, float]) -> Frame:
    return colourise(np.array([[value]], np.float32), limits)[0, 0]


def test_the_scale_bar_has_the_colours_of_the_depth() -> None:
    bar = draw.scale_bar(300, LIMITS_M)
    assert bar.dtype == np.uint8
    assert bar.shape[0] == 300
    assert (bar[:, : draw.BAR_WIDTH_PX] == bar[:, :1]).all()
    for row in (0, 73, 150, 299):
        depth_m = 10.0 - row / 299 * 9.9
        difference = bar[row, 0].astype(int) - colour_of(depth_m, LIMITS_M)
        assert np.abs(difference).max() <= 2  # a level of 256, up or down
    assert np.array_equal(bar[-1, 0], colour_of(0.1, LIMITS_M)), "near is at the bottom"
    assert bar[-1, 0].sum() > bar[0, 0].sum(), "near is bright"


@pytest.mark.parametrize(
    ("limits_m", "values"),
    [
        ((0.1, 10.0), [2, 4, 6, 8, 10]),
        ((0.0, 10.0), [0, 2, 4, 6, 8, 10]),
        ((1.0, 80.0), [20, 40, 60, 80]),
        ((0.3, 0.8), [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
    ],
)
def test_ticks_are_at_their_values(limits_m: tuple[float, float], values: list[float]) -> None:
    near, far = limits_m
    rows = tick_rows(draw.scale_bar(240, limits_m))
    assert rows == sorted(round((far - value) / (far - near) * 239) for value in values)


def test_labels_are_in_metres_and_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    put = draw.put_text
    monkeypatch.setattr(
        draw, "put_text", lambda canvas, text, at, scale: (texts.append(text), put(canvas, text, at, scale))
    )
    bar = draw.scale_bar(240, (0.0, 10.0))
    assert texts == ["0 m", "2 m", "4 m", "6 m", "8 m", "10 m"]
    inked = (bar[:, draw.BAR_WIDTH_PX + 2 * draw.TICK_PX :] < 128).all(-1)
    assert inked.any()
    for edge in (inked[0], inked[-1], inked[:, -1]):
        assert not edge.any(), "a label is cut off"


def test_the_error_bar_matches_the_error_colours() -> None:
    bar = draw.error_bar(240, limit=0.5)
    errors = np.linspace(0.5, 0.0, 240, dtype=np.float32)[:, None]
    assert np.array_equal(bar[:, :1], draw.error_colours(errors, 0.5))
    assert tick_rows(bar) == [round((0.5 - value) / 0.5 * 239) for value in (0.5, 0.4, 0.3, 0.2, 0.1, 0)]


@pytest.mark.parametrize("height_px", [8, 33, 1080, 2160])
def test_bars_of_all_heights(height_px: int) -> None:
    bar = draw.scale_bar(height_px, LIMITS_M)
    assert bar.shape[0] == height_px
    growth = max(1, height_px / 480)
    assert tick_rows(bar, round(draw.BAR_WIDTH_PX * growth))


def test_error_colours() -> None:
    error = np.array([[0.0, 0.1, 0.25, 0.4, 0.5, 3.0, np.inf, np.nan]], np.float32)
    colours = draw.error_colours(error)[0]
    brightness = colours[:5].astype(int).sum(-1)
    assert (np.diff(brightness) > 0).all()
    assert np.array_equal(colours[5], colours[4])
    assert np.array_equal(colours[6], colours[4])
    assert np.array_equal(colours[7], (128, 128, 128))
    assert colours[4][0] > colours[4][2], "bright yellow in RGB has more red than blue"
    assert np.array_equal(draw.error_colours(np.float32([[1.0]]), limit=2.0), draw.error_colours(np.float32([[0.25]])))


def test_a_title_is_above_the_unchanged_image() -> None:
    image = np.full((120, 200, 3), 77, np.uint8)
    result = draw.titled(image, "depth")
    strip = result[: result.shape[0] - 120]
    assert np.array_equal(result[-120:], image)
    assert (strip.max(), strip[0].min()) == (255, 255)
    columns = np.flatnonzero((strip < 128).all(-1).any(0))
    assert abs((columns[0] + columns[-1]) / 2 - 100) < 4, "not centred"


def test_a_long_title_shrinks_to_fit() -> None:
    result = draw.titled(np.zeros((50, 150, 3), np.uint8), "a title much too long for so narrow an image")
    inked = (result[:-50] < 128).all(-1)
    assert inked.any()
    assert not inked[:, 0].any()
    assert not inked[:, -1].any()


def test_side_by_side_aligns_lower_edges_on_white() -> None:
    tall, low = np.full((6, 4, 3), 10, np.uint8), np.full((3, 5, 3), 20, np.uint8)
    sheet = draw.side_by_side([tall, low], gap=2)
    assert sheet.shape == (6, 11, 3)
    assert (sheet[:, :4] == 10).all()
    assert (sheet[:, 4:6] == 255).all()
    assert (sheet[:3, 6:] == 255).all()
    assert (sheet[3:, 6:] == 20).all()


def test_stacked_aligns_left_edges_on_white() -> None:
    wide, narrow = np.full((2, 6, 3), 10, np.uint8), np.full((3, 4, 3), 20, np.uint8)
    sheet = draw.stacked([wide, narrow], gap=1)
    assert sheet.shape == (6, 6, 3)
    assert (sheet[:2] == 10).all()
    assert (sheet[2] == 255).all()
    assert (sheet[3:, :4] == 20).all()
    assert (sheet[3:, 4:] == 255).all()


def test_side_by_side_reuses_a_canvas() -> None:
    first, second = np.full((6, 4, 3), 10, np.uint8), np.full((6, 4, 3), 20, np.uint8)
    sheet = draw.side_by_side([first, first])
    expected = draw.side_by_side([second, first])
    assert draw.side_by_side([second, first], out=sheet) is sheet
    assert np.array_equal(sheet, expected)
    assert draw.side_by_side([first, first, first], out=sheet).shape != sheet.shape


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [(None, None, (0.1, 10.0)), (0.5, None, (0.5, 10.0)), (None, 4.0, (0.1, 4.0)), (0.0, 3.0, (0.0, 3.0))],
)
def test_colour_limits(near: float | None, far: float | None, expected: tuple[float, float]) -> None:
    assert draw.colour_limits(near, far, (1e-3, 10.0)) == expected
    assert draw.colour_limits(None, None, (2.0, 80.0)) == (2.0, 80.0)


@pytest.mark.parametrize(("near", "far"), [(5.0, 5.0), (6.0, 2.0), (-1.0, 2.0), (20.0, None), (float("nan"), None)])
def test_invalid_colour_limits_are_rejected(near: float, far: float | None) -> None:
    with pytest.raises(OptionError, match="--near"):
        draw.colour_limits(near, far, (1e-3, 10.0))


def test_png_preserves_colours_and_16_bits(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    depths = np.array([[0, 1, 65535]], np.uint16)
    draw.save_png(tmp_path / "colours.png", colours)
    draw.save_png(tmp_path / "depths.png", depths)
    assert np.array_equal(cv2.imread(str(tmp_path / "colours.png"))[..., ::-1], colours)
    assert np.array_equal(cv2.imread(str(tmp_path / "depths.png"), cv2.IMREAD_UNCHANGED), depths)


def test_a_video_is_written_atomically(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    with draw.video_writer(tmp_path / "whole.mp4", 10.0) as append:
        for _ in range(4):
            append(red)
    capture = cv2.VideoCapture(str(tmp_path / "whole.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    np.testing.assert_allclose(capture.read()[1].mean((0, 1)), (0, 0, 200), atol=8)
    capture.release()

    def broken() -> None:
        with draw.video_writer(tmp_path / "broken.mp4", 10.0) as append:
            append(red)
            raise InputError("what", "why", "cure")

    with pytest.raises(InputError, match="what"):
        broken()
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


def test_a_missing_video_encoder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoEncoder:
        fourcc = staticmethod(cv2.VideoWriter.fourcc)
        isOpened = open = lambda *_: False  # noqa: N815

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoWriter", NoEncoder)
    with (
        pytest.raises(MissingError, match="cannot write MP4"),
        draw.video_writer(tmp_path / "clip.mp4", 10.0) as append,
    ):
        append(np.zeros((48, 64, 3), np.uint8))
    assert not list(tmp_path.iterdir())
