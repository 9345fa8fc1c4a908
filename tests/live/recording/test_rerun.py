"""Rerun recordings, read back with its own reader; the viewer is a fake, since it needs a screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.live.recording.rerun import RerunRecording, RerunViewer
from mirrordepth_edge.live.result import LiveResult

SIZE_HW = (24, 34)
START_UNIX_NS = 1_700_000_000_123_456_789
CAMERA = Camera(fx_px=600.0, fy_px=610.0, width_px=340, height_px=240)


def result(number: int) -> LiveResult:
    depth_m = np.random.default_rng(number).uniform(1, 5, SIZE_HW).astype(np.float32)
    depth_m[0, 0] = 0
    return LiveResult(
        frame=np.full((*SIZE_HW, 3), 10 * number, np.uint8),
        depth_m=depth_m,
        number=number,
        captured_unix_ns=START_UNIX_NS + number * 10**9,
        latency_ms=1.0,
        age_ms=2.0,
        dropped=0,
    )


def record(path: Path, count: int, camera: Camera | None = None) -> RerunRecording:
    pytest.importorskip("rerun", reason="logging to Rerun needs rerun-sdk")
    with RerunRecording(path, camera=camera) as output:
        for number in range(count):
            output.show(result(number))
    assert output.problem is None
    return output


def read(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the logged values by entity and column, in order."""
    chunk = pytest.importorskip("rerun.chunk", reason="this rerun-sdk reads no files")
    entities: dict[str, dict[str, list[Any]]] = {}
    for part in chunk.RrdReader(str(path)).stream().to_chunks():
        batch = part.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            values = column.cast("int64") if str(column.type).startswith("timestamp") else column
            entities.setdefault(str(part.entity_path), {}).setdefault(name, []).extend(values.to_pylist())
    return entities


def test_a_file_is_written(tmp_path: Path) -> None:
    output = record(tmp_path / "out.rrd", 3, CAMERA)
    assert str(output) == f"{output.path}: 3 frames"
    assert output.path.stat().st_size > 3 * SIZE_HW[0] * SIZE_HW[1] * 4
    record(tmp_path / "none.rrd", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rrd"]


def test_photo_depth_camera_and_points(tmp_path: Path) -> None:
    record(tmp_path / "out.rrd", 2, CAMERA)
    entities = read(tmp_path / "out.rrd")
    for entity in ("/camera", "/camera/photo", "/camera/depth", "/points"):
        assert entities[entity]["captured"] == [START_UNIX_NS, START_UNIX_NS + 10**9]
        assert entities[entity]["frame"] == [0, 1]
    # Frames are a tenth of the calibrated size; the matrix is column-major.
    assert entities["/camera"]["Pinhole:image_from_camera"][0] == [[60, 0, 0, 0, 61, 0, 16.5, 11.5, 1]]
    assert entities["/camera"]["Pinhole:resolution"][0] == [[34, 24]]
    for number in range(2):
        depth_m = result(number).depth_m
        logged = np.array(entities["/camera/depth"]["DepthImage:buffer"][number], np.uint8).view(np.float32)
        np.testing.assert_array_equal(logged.reshape(SIZE_HW), depth_m)
        assert entities["/camera/depth"]["DepthImage:meter"][number] == [1]
        photo = np.array(entities["/camera/photo"]["EncodedImage:blob"][number], np.uint8)
        assert np.abs(cv2.imdecode(photo.ravel(), cv2.IMREAD_COLOR).astype(int) - 10 * number).max() <= 2
        points = np.array(entities["/points"]["Points3D:positions"][number])
        assert len(points) == depth_m.size - 1, "one pixel has no depth"
        u, v, z = 3, 0, depth_m[0, 3]
        assert points[2] == pytest.approx(((u - 16.5) / 60 * z, (v - 11.5) / 61 * z, z), rel=1e-5)
        grey = 10 * number
        assert entities["/points"]["Points3D:colors"][number][0] == (grey << 24 | grey << 16 | grey << 8 | 255)


def test_without_a_camera_there_is_no_point_cloud(tmp_path: Path) -> None:
    record(tmp_path / "out.rrd", 1)
    entities = {name for name in read(tmp_path / "out.rrd") if "properties" not in name}
    assert entities == {"/camera/photo", "/camera/depth"}


def test_the_viewer_starts_with_a_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = pytest.importorskip("rerun", reason="logging to Rerun needs rerun-sdk")
    calls: list[dict[str, object]] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(rerun.RecordingStream, "spawn", lambda self, **options: calls.append(options))
    with RerunViewer(camera=CAMERA) as output:
        output.show(result(0))
    assert output.problem is None
    assert calls == [{"memory_limit": "25%", "hide_welcome_screen": True}]


def test_a_viewer_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = pytest.importorskip("rerun", reason="logging to Rerun needs rerun-sdk")

    def spawn(self: object, **options: object) -> None:
        raise RuntimeError("Failed to find Rerun Viewer executable")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(rerun.RecordingStream, "spawn", spawn)
    with pytest.raises(MissingError, match="does not start") as caught:
        RerunViewer().__enter__()
    assert "executable" in caught.value.why


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a screen")
def test_no_viewer_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rerun", reason="logging to Rerun needs rerun-sdk")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(MissingError, match="cannot open a window") as caught:
        RerunViewer().__enter__()
    assert "--record out.rrd" in caught.value.cure


@pytest.mark.parametrize("make", [RerunViewer, lambda: RerunRecording(Path("out.rrd"))])
def test_missing_rerun_is_reported_before_anything_runs(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(MissingError, match="rerun-sdk") as caught:
        make()
    assert "mirrordepth-edge[rerun]" in caught.value.cure
