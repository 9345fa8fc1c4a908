"""The scripts in `benchmarks/peers/`, on tiny models made here and on a stand-in for trtexec."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench.compare import read_result
from mirrordepth_edge.bench.measure import Candidate
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.errors import DeviceError, InputError, MissingError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "peers"
NAMES = ("common", "foreign", "onnx_depth", "agreement", "trtexec")
CPU = SessionOptions(device="cpu")
HEIGHT, WIDTH = 6, 8

if not SCRIPTS.is_dir():
    pytest.skip("the scripts are in the repository only", allow_module_level=True)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """All of them, found as they find each other: beside the one that is run."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    yield {name: import_module(name) for name in NAMES}
    for name in NAMES:
        del sys.modules[name]


def channel_mean(path: Path, layout: str, dtype: str, sides: list[Any] | None = None, inputs: int = 1) -> Path:
    """An ONNX file whose depth is the mean of its input's channels."""
    shape = sides or ([1, 3, HEIGHT, WIDTH] if layout == "NCHW" else [1, HEIGHT, WIDTH, 3])
    axis = 1 if layout == "NCHW" else 3
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    images = [helper.make_tensor_value_info(f"image{place or ''}", kind, shape) for place in range(inputs)]
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, shape[:axis] + shape[axis + 1 :])
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "one"], ["same"]),
        helper.make_node("ReduceMean", ["same"], ["depth"], axes=[axis], keepdims=0),
    ]
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    graph = helper.make_graph(nodes, "mean", images, [depth], [one])
    save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def describe(folder: Path, layout: str = "NCHW", dtype: str = "float32", **changes: Any) -> str:
    """A description of `channel_mean`; `changes` are lines such as `input_name='"x"'`."""
    fields = {
        "input_name": '"image"',
        "input_layout": f'"{layout}"',
        "input_dtype": f'"{dtype}"',
        "input_size_hw": f"[{HEIGHT}, {WIDTH}]",
        "output_name": '"depth"',
        "output_shape": f"[1, {HEIGHT}, {WIDTH}]",
        "output_kind": '"metric"',
        **changes,
    }
    lines = ['name = "channel mean"', 'source = "this test"']
    for table in ("input", "output"):
        lines.append(f"[{table}]")
        own = [key for key in fields if key.startswith(table)]
        lines += [f"{key.removeprefix(f'{table}_')} = {fields[key]}" for key in own]
    path = folder / "described.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def picture() -> Frame:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def depth_of(scripts: dict[str, ModuleType], model: Path, description: str, frame: Frame) -> npt.NDArray[np.float32]:
    foreign = scripts["foreign"]
    predictor, _ = foreign.open_foreign(model, foreign.read_description(description), CPU)
    with predictor:
        return predictor(frame).copy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_float_models_see_normalised_channels_in_their_order(
    layout: str, channels: str, tmp_path: Path, scripts: dict[str, ModuleType], picture: Frame
) -> None:
    mean, std = [-1.0, 0.2, -0.3], [0.5, 2.0, 0.25]
    described = describe(
        tmp_path, layout, input_channels=f'"{channels}"', input_mean=mean, input_std=std, output_scale=3.0
    )
    depth = depth_of(scripts, channel_mean(tmp_path / "m.onnx", layout, "float32"), described, picture)
    seen = picture[..., :: 1 if channels == "RGB" else -1].astype(np.float64) / 255
    np.testing.assert_allclose(depth, 3.0 * ((seen - mean) / std).mean(axis=2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "limit"), [("inverse", 7.0 / 1e-6), ("relative", 7.0 * 1e-6)])
def test_uint8_models_without_metres_give_finite_positive_depth(
    kind: str, limit: float, tmp_path: Path, scripts: dict[str, ModuleType], picture: Frame
) -> None:
    """Black is an answer of zero: infinitely far, or no distance at all."""
    picture[0, 0] = 0
    described = describe(tmp_path, "NHWC", "uint8", output_kind=f'"{kind}"', output_scale=7.0)
    depth = depth_of(scripts, channel_mean(tmp_path / "m.onnx", "NHWC", "uint8"), described, picture)
    answers = picture.astype(np.float64).mean(axis=2)
    assert answers[0, 0] == 0
    expected = 7.0 / np.maximum(answers, 1e-6) if kind == "inverse" else 7.0 * np.maximum(answers, 1e-6)
    np.testing.assert_allclose(depth, expected, rtol=1e-5)
    np.testing.assert_allclose(depth[0, 0], limit, rtol=1e-5)


def test_frames_of_other_sizes_are_stretched_and_depth_has_their_size(
    tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    grey = np.full((50, 30, 3), 51, np.uint8)
    depth = depth_of(scripts, channel_mean(tmp_path / "m.onnx", "NCHW", "float32"), describe(tmp_path), grey)
    assert depth.shape == (50, 30)
    np.testing.assert_allclose(depth, 0.2, rtol=1e-5)


def test_free_sides_take_the_described_size(tmp_path: Path, scripts: dict[str, ModuleType], picture: Frame) -> None:
    model = channel_mean(tmp_path / "m.onnx", "NCHW", "float32", sides=["batch", 3, "height", "width"])
    depth = depth_of(scripts, model, describe(tmp_path), picture)
    np.testing.assert_allclose(depth, picture.astype(np.float64).mean(axis=2) / 255, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="cannot be run as described"):
        depth_of(scripts, model, describe(tmp_path, output_shape="[1, 3, 4]"), picture)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_name": '"other"'}, "the input other float32"),
        ({"output_name": '"other"'}, "the output other float32"),
        ({"input_size_hw": "[6, 9]"}, "the input image float32 [1, 3, 6, 9], the file image float32 [1, 3, 6, 8]"),
        ({"input_dtype": '"uint8"'}, "the input image uint8"),
        ({"input_layout": '"NHWC"'}, "the input image float32 [1, 6, 8, 3]"),
        ({"output_shape": "[6, 8]"}, "the output depth"),
    ],
)
def test_a_description_of_another_model_is_refused(
    changes: dict[str, str], said: str, tmp_path: Path, scripts: dict[str, ModuleType], picture: Frame
) -> None:
    model = channel_mean(tmp_path / "m.onnx", "NCHW", "float32")
    with pytest.raises(InputError, match="does not match its description") as caught:
        depth_of(scripts, model, describe(tmp_path, **changes), picture)
    assert said in caught.value.why


def test_a_model_with_a_second_input_is_refused(tmp_path: Path, scripts: dict[str, ModuleType], picture: Frame) -> None:
    model = channel_mean(tmp_path / "m.onnx", "NCHW", "float32", inputs=2)
    with pytest.raises(InputError, match="does not match its description"):
        depth_of(scripts, model, describe(tmp_path), picture)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_crop": "true"}, "input.crop"),
        ({"output_kind": '"disparity"'}, "output.kind"),
        ({"input_dtype": '"uint8"', "input_mean": "[0.5, 0.5, 0.5]"}, "cannot have mean and std"),
        ({"input_std": "[0.0, 1.0, 1.0]"}, "positive"),
        ({"output_shape": "[2, 6, 8]"}, "height, width and dimensions of 1"),
        ({"output_scale": '"a lot"'}, "output.scale"),
        ({"input_size_hw": "[6, "}, ""),
    ],
)
def test_descriptions_are_read_strictly(
    changes: dict[str, str], said: str, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    with pytest.raises(InputError) as caught:
        scripts["foreign"].read_description(describe(tmp_path, **changes))
    assert said in caught.value.why
    assert "README.md" in caught.value.cure


def test_the_descriptions_here_are_readable_and_say_where_their_facts_are_from(scripts: dict[str, ModuleType]) -> None:
    names = [path.stem for path in (SCRIPTS / "models").glob("*.toml")]
    assert "midas_v21_small" in names
    for name in names:
        assert scripts["foreign"].read_description(name).source.startswith("https://")
    with pytest.raises(OptionError, match="no description"):
        scripts["foreign"].read_description("nobody")


def test_size_counts_weights_that_lie_outside(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    foreign = scripts["foreign"]
    model = channel_mean(tmp_path / "m.onnx", "NCHW", "float32")
    save(load(model), model, save_as_external_data=True, location="m.weights", size_threshold=0)
    predictor, megabytes = foreign.open_foreign(model, foreign.read_description(describe(tmp_path)), CPU)
    assert megabytes == pytest.approx((model.stat().st_size + 4) / 1e6)
    assert predictor.session.precision == "fp32"


def test_a_foreign_model_and_ours_in_one_table(
    tmp_path: Path, scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    model = channel_mean(tmp_path / "m.onnx", "NCHW", "float32")
    peer = ["--peer", describe(tmp_path, input_mean=[-1.0, -1.0, -1.0]), str(model)]  # black is 1 m
    written = tmp_path / "out.json"
    words = [*peer, "--frames", "7", "--warmup", "0", "--device", "cpu", "--json", str(written)]
    assert scripts["onnx_depth"].main(words) == 0
    ours, theirs = read_result(written), read_result(written.with_suffix(".2.json"))
    assert (ours.artefact, theirs.artefact) == ("nano.onnx", "channel mean")
    assert ours.boundary == theirs.boundary
    assert ours.latency.samples == theirs.latency.samples == 7
    output = capsys.readouterr().out
    assert "FP32" in output
    assert f"{theirs.latency.p50_ms:.1f} (" in output
    assert "times as long as nano.onnx" in output


def test_errors_have_the_format_of_mde(
    tmp_path: Path, scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    main = scripts["onnx_depth"].main
    assert main(["--peer", "nobody", "m.onnx"]) == 2
    assert main(["--peer", describe(tmp_path), str(tmp_path / "absent.onnx")]) == 1
    (tmp_path / "text.onnx").write_text("no model", encoding="utf-8")
    assert main(["--peer", describe(tmp_path), str(tmp_path / "text.onnx")]) == 1
    output = capsys.readouterr().err
    assert output.count("error: ") == output.count("  next: ") == 3


def test_other_timers_agree(scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        scripts["agreement"].main(["nano", "--frames", "6", "--warmup", "0", "--within", "9", "--device", "cpu"]) == 0
    )
    rows = capsys.readouterr().out.splitlines()
    for name in ("mde bench", "InferenceSession.run", "Polygraphy OnnxrtRunner"):
        assert any(row.startswith(name) for row in rows)


def test_a_wrong_timer_is_reported(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that reads seconds as milliseconds says that our runs take a thousand times as long."""
    agreement = scripts["agreement"]
    honest = agreement.time_session

    def wrong(session: Any) -> Any:
        run = honest(session)

        def in_seconds(feeds: Mapping[str, Any]) -> Any:
            outputs, milliseconds = run(feeds)
            return outputs, milliseconds / 1000

        return in_seconds

    monkeypatch.setattr(agreement, "time_session", wrong)
    assert agreement.main(["nano", "--frames", "6", "--warmup", "0", "--within", "0.9", "--device", "cpu"]) == 3
    output = capsys.readouterr().err
    assert "InferenceSession.run" in output
    assert "Polygraphy" not in output


def test_other_timers_refuse_checkpoints(scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts["agreement"].main(["model.safetensors"]) == 2
    assert "No other timer" in capsys.readouterr().err


# The layout of trtexec's --exportTimes: a query each with copies of 0.1 and 0.2 ms around 1, 2 and 4 ms.
TIMES = "[\n" + "".join(
    f'{", " if place else "  "}{{ "startEnqMs" : 9.5, "endEnqMs" : 9.75, "startH2dMs" : 10, "endH2dMs" : 10.1, '
    f'"startComputeMs" : 10.1, "endComputeMs" : {10.1 + ms}, "startD2hMs" : {10.1 + ms}, "endD2hMs" : {10.3 + ms}, '
    f'"h2dMs" : 0.1, "computeMs" : {ms}, "d2hMs" : 0.2, "latencyMs" : {ms + 0.3} }}\n'
    for place, ms in enumerate((1, 4, 2))
) + "]\n"  # fmt: skip


def stand_in(folder: Path, options: str = "--noDataTransfers", ends: int = 0) -> Path:
    """A trtexec that offers some options, notes what it is told, and writes `TIMES`."""
    path = folder / "trtexec"
    path.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
told = dict(word.partition("=")[::2] for word in sys.argv[1:])
if "--help" in told:
    print({options!r})
    sys.exit()
image = pathlib.Path(told["--loadInputs"].partition(":")[2])
told["bytes"] = image.stat().st_size
pathlib.Path({str(folder / "told.json")!r}).write_text(json.dumps(told))
pathlib.Path(told["--exportTimes"]).write_text({TIMES!r})
print("[07/01/2026-12:00:00] [E] no memory" if {ends} else "")
sys.exit({ends})
""",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def test_times_are_read_in_trtexecs_own_layout(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    (tmp_path / "times.json").write_text(TIMES, encoding="utf-8")
    times = scripts["trtexec"].read_times(tmp_path / "times.json")
    np.testing.assert_allclose(times["latencyMs"], [1.3, 4.3, 2.3])
    np.testing.assert_allclose(times["computeMs"], [1, 4, 2])
    np.testing.assert_allclose(times["h2dMs"] + times["d2hMs"], 0.3)


@pytest.mark.parametrize("text", ["[]", "{}", "[{}]", "[1]", "", "7", '[{"h2dMs": "soon"}]'])
def test_other_files_are_no_times(text: str, tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    (tmp_path / "times.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="file of trtexec"):
        scripts["trtexec"].read_times(tmp_path / "times.json")


OLD, NEW = "--noDataTransfers", "--includeDataTransfers"


@pytest.mark.parametrize(
    ("offers", "protocol", "flags"),
    [
        (OLD, "trtexec-10", set()),
        (NEW, "trtexec-10", {"--includeDataTransfers", "--noCudaGraph", "--noSpinWait"}),
        (OLD, "trtexec-11", {"--noDataTransfers", "--useCudaGraph", "--useSpinWait"}),
        (NEW, "trtexec-11", set()),
    ],
)
def test_trtexec_gets_the_flags_of_the_protocol(
    offers: str, protocol: str, flags: set[str], tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    image = {"image": np.zeros((1, 2, 3, 3), np.uint8)}
    times = scripts["trtexec"].run(str(stand_in(tmp_path, offers)), Path("a.plan"), protocol, 2, image)
    np.testing.assert_allclose(times["latencyMs"], [1.3, 4.3, 2.3])
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert {name for name, value in told.items() if value == ""} == flags
    assert (told["--loadEngine"], told["--warmUp"], told["--duration"]) == ("a.plan", "200", "2")
    assert told["--loadInputs"].startswith("image:")
    assert told["bytes"] == 18


def test_a_trtexec_that_fails_is_quoted(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    image = {"image": np.zeros(1, np.uint8)}
    with pytest.raises(DeviceError, match="failed with 5") as caught:
        scripts["trtexec"].run(str(stand_in(tmp_path, ends=5)), Path("a.plan"), "trtexec-10", 1, image)
    assert caught.value.why.endswith("[E] no memory")


class GpuSession(CheckedSession):
    """An engine of constant depth, whose GPU copies for 0.1 and 0.2 ms around 1 ms."""

    backend, device, precision, version = "tensorrt", "a GPU", "fp16", "10.9"
    inputs: tuple[TensorSpec, ...] = (
        TensorSpec(name="image", dtype="uint8", shape=(1, 224, 288, 3), layout="NHWC", range="", unit=""),
    )
    outputs: tuple[TensorSpec, ...] = (
        TensorSpec(name="depth", dtype="float32", shape=(1, 224, 288), layout="NHW", range="", unit=""),
    )

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        return {"depth": np.ones((1, 224, 288), np.float32)}

    def device_ms(self) -> tuple[float, ...]:
        return (0.1, 1.0, 0.2)


@pytest.mark.parametrize(("protocol", "ours"), [("trtexec-10", 1.3), ("trtexec-11", 1.0)])
def test_trtexec_beside_ours(
    protocol: str,
    ours: float,
    tmp_path: Path,
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    candidate = Candidate(predictor=DepthPredictor(GpuSession(), PRESETS["nano"]), name="a.plan", sha256="0" * 64)
    monkeypatch.setattr(scripts["trtexec"], "open_ours", lambda name, *_: (candidate, Path(name)))
    words = ["a.plan", "--protocol", protocol, "--frames", "8", "--rounds", "2"]
    assert scripts["trtexec"].main(words) == 0
    output = capsys.readouterr().out
    assert f"mde bench  {ours:.3f} (" in output.replace("mde bench   ", "mde bench  ")
    assert f"{2.3 / ours:.2f}" in output
    assert "trtexec, p50 ms: host to device 0.100, compute 2.000, device to host 0.200" in output
    assert "mde bench, p50 ms: host to device 0.100, compute 1.000, device to host 0.200" in output


def test_a_missing_trtexec_is_named(
    tmp_path: Path,
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trtexec = scripts["trtexec"]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "JETPACK", str(tmp_path / "absent"))
    assert trtexec.main(["a.plan"]) == MissingError.exit_code
    assert trtexec.main(["a.plan", "--trtexec", str(tmp_path / "absent")]) == MissingError.exit_code
    assert trtexec.main(["a.onnx"]) == OptionError.exit_code
    assert capsys.readouterr().err.count("trtexec was not found") == 2
    monkeypatch.setattr(trtexec, "JETPACK", str(stand_in(tmp_path)))
    monkeypatch.setenv("PATH", "")
    assert trtexec.find_trtexec(None) == str(tmp_path / "trtexec")
