"""The examples run: on the synthetic source, in a second process, and in a stand-in for ROS 2."""

from __future__ import annotations

import array
import importlib.util
import py_compile
import re
import runpy
import struct
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4
from xml.etree import ElementTree

import numpy as np
import pytest

import mirrordepth_edge
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.shared_memory import RAM_DISK, SharedDepth

EXAMPLES = Path(__file__).parent.parent / "examples"
ROS = EXAMPLES / "ros2" / "mirrordepth_ros"
SIZE_HW = (24, 34)
START_UNIX_NS = 1_700_000_000_123_456_789


def result(number: int) -> LiveResult:
    rng = np.random.default_rng(number)
    return LiveResult(
        frame=rng.integers(0, 256, (*SIZE_HW, 3), np.uint8),
        depth_m=rng.uniform(1, 5, SIZE_HW).astype(np.float32),
        number=number,
        captured_unix_ns=START_UNIX_NS + number,
        latency_ms=1.0,
        age_ms=1.0,
        dropped=0,
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_they_compile(path: Path, tmp_path: Path) -> None:
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)


def test_a_robots_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["robot_loop.py", "synthetic", "--fov-deg", "70", "--frames", "3"])
    runpy.run_path(str(EXAMPLES / "robot_loop.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert re.fullmatch(rf"frame {number}: speed [01]\.\d\d, \d+ ms old, \d+ dropped", line)


@pytest.mark.parametrize(
    ("near_m", "age_s", "speed"), [(0.3, 0.0, 0.0), (0.6, 0.0, 0.0), (1.3, 0.0, 0.5), (9.0, 0.0, 1.0), (9.0, 0.6, 0.0)]
)
def test_the_robot_slows_down_near_obstacles(near_m: float, age_s: float, speed: float) -> None:
    loop = runpy.run_path(str(EXAMPLES / "robot_loop.py"))
    depth_m = np.full((90, 90), 0.1, np.float32)  # at the edges there is always something
    depth_m[30:60, 30:60] = near_m
    depth_m[45, 45] = 0.0  # one wrong pixel
    assert loop["speed_for"](depth_m, age_s) == pytest.approx(speed, abs=1e-6)


@pytest.mark.skipif(not RAM_DISK.is_dir(), reason="the reader is for Linux")
def test_a_reader_of_shared_memory(tmp_path: Path) -> None:
    name = f"mde-example-{uuid4().hex}"
    with SharedDepth(name) as output:
        output.show(result(0))
        command = [sys.executable, str(EXAMPLES / "shared_memory_reader.py"), name, "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            first = reader.stdout.readline()
            output.show(result(1))
            rest, errors = reader.communicate(timeout=600)
    nearest = [result(number).depth_m.min() for number in range(2)]
    assert first.startswith(f"1: nearest {nearest[0]:.2f} m")
    assert rest.startswith(f"2: nearest {nearest[1]:.2f} m")
    assert (reader.returncode, errors) == (0, "")


# ROS 2. Messages have the fields of ROS's own definitions (sensor_msgs of Humble to Jazzy), and refuse all else, as
# ROS's Python classes do.

HEADER = {"stamp": "time", "frame_id": "string"}
IMAGE = {
    "header": HEADER,
    "height": "uint32",
    "width": "uint32",
    "encoding": "string",
    "is_bigendian": "uint8",
    "step": "uint32",
    "data": "uint8[]",
}
CAMERA_INFO = {
    "header": HEADER,
    "height": "uint32",
    "width": "uint32",
    "distortion_model": "string",
    "d": "float64[]",
    "k": "float64[9]",
    "r": "float64[9]",
    "p": "float64[12]",
    "binning_x": "uint32",
    "binning_y": "uint32",
}


class Message:
    """A message that takes only fields of its own, of their types."""

    def __init__(self, fields: dict[str, Any]) -> None:
        object.__setattr__(self, "_fields", fields)
        for name, kind in fields.items():
            object.__setattr__(self, name, Message(kind) if isinstance(kind, dict) else None)

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._fields[name]  # type: ignore[attr-defined]
        floats = re.fullmatch(r"float64\[(\d*)\]", kind)
        if kind in ("uint32", "uint8"):
            assert isinstance(value, int)
            assert 0 <= value < 2 ** int(kind[4:])
        elif kind == "string":
            assert isinstance(value, str)
        elif kind == "uint8[]":
            assert isinstance(value, array.array), "anything else takes seconds"
            assert value.typecode == "B"
        elif floats:
            assert all(isinstance(number, float) for number in value)
            assert not floats[1] or len(value) == int(floats[1])
        else:
            assert kind == "time"
            assert 0 <= value.nanosec < 10**9
        object.__setattr__(self, name, value)


class Ros:
    """What the node uses of rclpy."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self.published: dict[str, list[Message]] = {}
        self.spun = 0
        self.running = False

    def modules(self) -> dict[str, ModuleType]:
        ros = self

        class Node:
            def __init__(self, node_name: str) -> None:
                assert re.fullmatch(r"[a-z_]+", node_name)

            def declare_parameter(self, name: str, value: Any) -> SimpleNamespace:
                return SimpleNamespace(value=ros.parameters.get(name, value))

            def create_publisher(self, msg_type: Any, topic: str, qos_profile: object) -> SimpleNamespace:
                assert qos_profile == "sensor data"
                return SimpleNamespace(publish=ros.published.setdefault(topic, []).append)

            def get_logger(self) -> SimpleNamespace:
                return SimpleNamespace(info=lambda text: None)

        class Time:
            def __init__(self, *, nanoseconds: int) -> None:
                self.nanoseconds = nanoseconds

            def to_msg(self) -> SimpleNamespace:
                seconds, rest = divmod(self.nanoseconds, 10**9)
                return SimpleNamespace(sec=seconds, nanosec=rest)

        def spin_once(node: Node, *, timeout_sec: float) -> None:
            assert timeout_sec == 0
            self.spun += 1

        def switch(on: bool) -> None:
            self.running = on

        contents: dict[str, dict[str, Any]] = {
            "rclpy": {
                "init": lambda: switch(True),
                "ok": lambda: self.running,
                "shutdown": lambda: switch(False),
                "spin_once": spin_once,
            },
            "rclpy.node": {"Node": Node},
            "rclpy.time": {"Time": Time},
            "rclpy.qos": {"qos_profile_sensor_data": "sensor data"},
            "rclpy.executors": {"ExternalShutdownException": type("ExternalShutdownException", (Exception,), {})},
            "sensor_msgs": {},
            "sensor_msgs.msg": {"Image": lambda: Message(IMAGE), "CameraInfo": lambda: Message(CAMERA_INFO)},
        }
        made = {}
        for name, attributes in contents.items():
            made[name] = ModuleType(name)
            vars(made[name]).update(attributes)
        return made


class Stream:
    """Two results, then whatever `after` does."""

    source = SimpleNamespace(name="numbered")

    def __init__(self) -> None:
        self.closed = False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[LiveResult]:
        yield from (result(0), result(1))
        raise KeyboardInterrupt


def run_node(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> tuple[Ros, Stream, list[Any]]:
    ros, frames, opened = Ros(parameters), Stream(), []
    for name, module in ros.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(mirrordepth_edge, "stream", lambda *a, **k: opened.append((a, k)) or frames, raising=False)
    spec = importlib.util.spec_from_file_location("depth_node", ROS / "mirrordepth_ros" / "depth_node.py")
    assert spec is not None
    assert spec.loader is not None
    node = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(node)
    node.main()
    return ros, frames, opened


def test_the_ros_node_publishes_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    ros, frames, opened = run_node(monkeypatch, source="synthetic", frame_id="eye")
    assert opened == [(("synthetic", "nano"), {"camera": None, "reconnect": True})]
    assert ros.published["camera_info"] == [], "the camera is not known"
    assert len(ros.published["depth"]) == 2
    for number, image in enumerate(ros.published["depth"]):
        assert (image.height, image.width, image.step) == (24, 34, 136)
        assert (image.encoding, image.is_bigendian) == ("32FC1", 0)
        assert image.header.frame_id == "eye"
        assert image.header.stamp.sec * 10**9 + image.header.stamp.nanosec == START_UNIX_NS + number
        assert struct.unpack(f"<{24 * 34}f", image.data) == tuple(result(number).depth_m.ravel())
    assert ros.spun == 2
    assert frames.closed
    assert not ros.running, "Ctrl-C ends it without a traceback"


def test_the_ros_node_publishes_a_known_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 degrees wide: the focal length is half of the width."""
    ros, _, opened = run_node(monkeypatch, fov_deg=90.0)
    assert opened[0][1]["camera"].fov_deg == 90
    info = ros.published["camera_info"][1]
    assert (info.height, info.width, info.distortion_model, info.d) == (24, 34, "plumb_bob", [0.0] * 5)
    assert info.k == pytest.approx([17, 0, 16.5, 0, 17, 11.5, 0, 0, 1])
    assert info.r == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert info.p == pytest.approx([17, 0, 16.5, 0, 0, 17, 11.5, 0, 0, 0, 1, 0])
    assert info.header.stamp.nanosec == ros.published["depth"][1].header.stamp.nanosec
    assert info.header.frame_id == ros.published["depth"][1].header.frame_id == "camera_optical_frame"


def test_the_ros_package_is_complete() -> None:
    package = ElementTree.parse(ROS / "package.xml").getroot()
    name = package.findtext("name")
    assert name == ROS.name
    assert package.findtext("export/build_type") == "ament_python"
    assert (ROS / "resource" / name).is_file()
    assert (ROS / name / "__init__.py").is_file()
    setup = (ROS / "setup.py").read_text(encoding="utf-8")
    assert f'NAME = "{name}"' in setup
    assert "depth_node = {NAME}.depth_node:main" in setup
    config = ConfigParser()
    config.read(ROS / "setup.cfg")
    assert config["develop"]["script_dir"] == config["install"]["install_scripts"] == f"$base/lib/{name}"


def test_the_ros_readme_says_that_it_was_not_run() -> None:
    assert "Not yet run" in (EXAMPLES / "ros2" / "README.md").read_text(encoding="utf-8")
