"""Histograms match all values in float64; each method matches its definition and ONNX Runtime."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.config import CalibrationMethod
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.export.parity import FRAMES_DIR, reference_frames
from mirrordepth_edge.graph.activations import (
    BINS,
    CHUNK,
    HALF,
    ActivationStatistics,
    Range,
    TensorStatistics,
    collect,
    coverage,
)
from mirrordepth_edge.imaging.preprocess import Resizer

onnx = pytest.importorskip("onnx")

Values = npt.NDArray[np.float32]
Change = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
METHODS: tuple[CalibrationMethod, ...] = ("max", "entropy", "percentile", "mse")
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=200_000)
SHAPES: dict[str, Values] = {
    "gauss": NORMAL.astype(np.float32),
    "laplace": RNG.laplace(size=200_000).astype(np.float32),
    "shifted": (0.3 * NORMAL + 2).astype(np.float32),
    "skewed": (np.exp(NORMAL) - 1.5).astype(np.float32),
    "relu": np.maximum(RNG.laplace(size=200_000), 0).astype(np.float32),
    "relu6": np.clip(4 * NORMAL, 0, 6).astype(np.float32),
    "gelu": (2 * NORMAL / (1 + np.exp(-3.4 * NORMAL))).astype(np.float32),
    "negative": -np.abs(NORMAL).astype(np.float32),
    "outlier": np.append(NORMAL, [35, -20, 40]).astype(np.float32),
}


def chain(*nodes: tuple[str, str]) -> Any:
    """A chain of operators on `image`, of any size, as `(operator, name of its output)`."""
    from onnx import TensorProto, helper

    names = ["image", *(name for _, name in nodes)]
    graph = helper.make_graph(
        [helper.make_node(kind, [names[place]], [name]) for place, (kind, name) in enumerate(nodes)],
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [None])],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def statistics_of(*frames: npt.NDArray[Any]) -> TensorStatistics:
    model = chain(("Identity", "out"))
    return collect(model, ["image"], (np.asarray(frame, np.float32) for frame in frames)).tensors["image"]


@pytest.fixture(scope="module")
def shapes() -> ActivationStatistics:
    """Statistics of `SHAPES`, by name."""
    return ActivationStatistics(tensors={name: statistics_of(values) for name, values in SHAPES.items()}, frames=1)


def assert_holds(tensor: TensorStatistics, kept: npt.NDArray[np.float64]) -> None:
    """Check `tensor` against NumPy."""
    counts, _ = np.histogram(kept, tensor.edges)
    np.testing.assert_array_equal(tensor.counts, counts)
    assert (tensor.minimum, tensor.maximum) == (kept.min(), kept.max())
    assert tensor.count == kept.size


def test_statistics_match_all_values() -> None:
    """For the input, an intermediate activation and the output."""
    frames = [RNG.normal(scale=scale, size=size).astype(np.float32) for scale, size in ((1, 70_001), (9, 5), (3, 999))]
    seen: list[int] = []
    model = chain(("Neg", "mirrored"), ("Relu", "relu"), ("Sqrt", "out"))
    statistics = collect(model, ["relu", "image", "out"], iter(frames), on_frame=seen.append)
    kept = np.concatenate(frames).astype(np.float64)
    assert list(statistics.tensors) == ["relu", "image", "out"]
    assert statistics.frames == 3
    assert seen == [1, 2, 3]
    assert_holds(statistics.tensors["image"], kept)
    assert_holds(statistics.tensors["relu"], np.maximum(-kept, 0))
    assert_holds(statistics.tensors["out"], np.sqrt(np.maximum(-kept, 0).astype(np.float32)).astype(np.float64))


@pytest.mark.parametrize("seed", range(20))
def test_histogram_growth_is_exact_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [np.zeros(3, np.float32)]
    for exponent in rng.integers(-30, 30, 6) - 2 * seed:
        values = rng.normal(size=rng.integers(1, 2 * CHUNK)) * 2.0**exponent
        values[rng.random(values.size) < rng.random()] = 0
        # Powers of two lie on bins' edges, whatever the width.
        frames.append(np.append(values, rng.choice([-1, 1]) * 2.0 ** (exponent + 2)).astype(np.float32))
    first = statistics_of(*frames)
    assert_holds(first, np.concatenate(frames).astype(np.float64))
    extent = max(-first.minimum, first.maximum)
    assert HALF * first.width / 2 <= extent < HALF * first.width
    for other in (frames[::-1], [frames[place] for place in rng.permutation(len(frames))], [np.concatenate(frames)]):
        tensor = statistics_of(*other)
        np.testing.assert_array_equal(tensor.counts, first.counts)
        assert tensor.width == first.width


@pytest.mark.parametrize("values", [[3.4e38, -3e38, 1.0], [1e-38, 1e-40, 0.0], [-1e-38, 0.0], [-(2.0**127)]])
def test_extreme_float32_values_are_counted(values: list[float]) -> None:
    tensor = statistics_of(np.array(values))
    assert tensor.counts.sum() == len(values)
    assert tensor.counts.shape == (BINS,)
    for method in METHODS:
        found = tensor.range(method)
        assert np.float32(min(*values, 0)) <= found.low <= 0 <= found.high <= np.float32(max(*values, 0))


def test_memory_does_not_grow_with_frames() -> None:
    def peak(frames: int) -> int:
        rng = np.random.default_rng(1)
        images: Iterator[Values] = (rng.normal(size=50_000).astype(np.float32) for _ in range(frames))
        tracemalloc.start()
        try:
            collect(model, ["image", "relu", "out"], images)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    model = chain(("Relu", "relu"), ("Neg", "out"))
    peak(1)  # what is imported first is not counted
    assert peak(50) <= 1.02 * peak(5)


def test_integer_images_and_reused_buffers_are_counted() -> None:
    """Like uint8 frames of a camera in one buffer."""
    from onnx import TensorProto, helper

    model = chain(("Neg", "out"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "pixels"
    before = model.SerializeToString()

    def images() -> Iterator[npt.NDArray[np.uint8]]:
        buffer = np.empty(256, np.uint8)
        for shift in (0, 3):
            buffer[:] = np.arange(256) >> shift
            yield buffer

    statistics = collect(model, ["image", "out"], images())
    kept = np.concatenate([np.arange(256), np.arange(256) >> 3]).astype(np.float64)
    assert_holds(statistics.tensors["image"], kept)
    assert_holds(statistics.tensors["out"], -kept)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("bad", "name"), [(-1.0, "root"), (0.0, "log"), (np.nan, "image"), (np.inf, "image")])
def test_activation_that_is_not_finite_is_refused(bad: float, name: str) -> None:
    good = np.ones(CHUNK + 5, np.float32)
    broken = good.copy()
    broken[-1] = bad
    model = chain(("Sqrt", "root"), ("Log", "log"), ("Neg", "out"))
    with pytest.raises(InputError, match=f"activation {name} is not finite on frame 2") as caught:
        collect(model, ["image", "root", "log"], [good, broken])
    assert "mde run" in caught.value.cure


def test_magnitudes_match_all_values(shapes: ActivationStatistics) -> None:
    tensor, kept = shapes.tensors["gauss"], np.abs(SHAPES["gauss"]).astype(np.float64)
    np.testing.assert_array_equal(tensor.magnitudes, np.histogram(kept, tensor.edges[HALF:])[0])
    for share in (0.5, 0.999, 1.0):
        assert tensor.extent(share) == pytest.approx(np.quantile(kept, share), abs=tensor.width)


def test_no_frames_are_refused() -> None:
    with pytest.raises(InputError, match="no frames") as caught:
        collect(chain(("Relu", "out")), ["image"], [])
    assert "random" in caught.value.why


def test_max_clips_nothing(shapes: ActivationStatistics) -> None:
    for name, found in shapes.ranges("max").items():
        assert found == Range(min(float(SHAPES[name].min()), 0.0), max(float(SHAPES[name].max()), 0.0))


def test_tensor_of_zeros_has_an_empty_range() -> None:
    tensor = statistics_of(np.zeros(10), np.zeros(3))
    assert [tensor.range(method) for method in METHODS] == [Range(0, 0)] * len(METHODS)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_range_contains_zero_and_stays_within_the_observed_values(
    shapes: ActivationStatistics, method: CalibrationMethod, symmetric: bool
) -> None:
    for name, found in shapes.ranges(method, symmetric=symmetric).items():
        low, high = float(SHAPES[name].min()), float(SHAPES[name].max())
        assert min(low, 0) <= found.low <= 0 <= found.high <= max(high, 0), name
        assert found.low == 0 or low < 0, name
        assert found.high == 0 or high > 0, name
        assert found.extent > 0, name


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99, 100.0])
def test_percentiles_match_numpy(shapes: ActivationStatistics, percentile: float) -> None:
    """Within a bin of the neighbouring order statistics."""
    for name, tensor in shapes.tensors.items():
        found = tensor.range("percentile", percentile=percentile)
        values, width = SHAPES[name].astype(np.float64), shapes.tensors[name].width
        ends = (100 - percentile) / 2, (100 + percentile) / 2
        low, high = np.percentile(values, ends, method="lower"), np.percentile(values, ends, method="higher")
        assert min(low[0], 0) - width <= found.low <= min(high[0], 0) + width, name
        assert max(low[1], 0) - width <= found.high <= max(high[1], 0) + width, name


def onnxruntime_range(method: str, values: Values, bins: int, levels: int = 128) -> tuple[float, float]:
    """Range from ONNX Runtime's calibrator."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    collector = calibrate.HistogramCollector(method, False, bins, levels, 99.9, "same")
    collector.collect({"x": values})
    low, high, *_ = collector.compute_collection_result()["x"]
    return float(low), float(high)


@pytest.mark.parametrize("name", ["gauss", "laplace", "skewed", "gelu", "outlier"])
def test_percentiles_match_onnxruntime(shapes: ActivationStatistics, name: str) -> None:
    found = shapes.tensors[name].range("percentile", percentile=99.9)
    low, high = onnxruntime_range("percentile", SHAPES[name], BINS)
    # Its bins and ours: the edges beside the same value.
    assert (found.low, found.high) == pytest.approx((low, high), abs=3 * shapes.tensors[name].width)


@pytest.mark.parametrize("name", ["gauss", "laplace"])
def test_entropy_is_near_onnxruntime(shapes: ActivationStatistics, name: str) -> None:
    """Its bins, rounding of counts and smoothing differ, and with many zeros its result too."""
    found = shapes.tensors[name].range("entropy", symmetric=True)
    low, high = onnxruntime_range("entropy", SHAPES[name], 1024)
    assert found.extent == pytest.approx(max(-low, high), rel=0.15)
    assert found.extent < np.abs(SHAPES[name]).max()


def divergence(tensor: TensorStatistics, bins: int, levels: int) -> float:
    """KL divergence of the values clipped at `bins` bins from the quantised ones, by definition."""
    counts = np.trim_zeros(tensor.magnitudes, "b").astype(np.float64)
    counts[0] = counts[1]
    inside = counts[:bins]
    expected = inside.copy()
    expected[-1] += counts[bins:].sum()
    group = np.digitize(np.arange(bins), np.linspace(0, bins, levels + 1)) - 1
    filled = np.bincount(group, inside > 0, levels)
    share = np.divide(np.bincount(group, inside, levels), filled, out=np.zeros(levels), where=filled > 0)
    return float(pytest.importorskip("scipy.stats").entropy(expected, np.where(inside > 0, share[group], 0)))


@pytest.mark.parametrize("name", ["gauss", "skewed", "relu", "gelu", "outlier"])
def test_entropy_has_the_smallest_divergence(shapes: ActivationStatistics, name: str) -> None:
    tensor, limit = shapes.tensors[name], float(np.abs(SHAPES[name]).max())
    filled = int(np.flatnonzero(tensor.magnitudes)[-1]) + 1
    # One-sided tensors have all levels on one side, unless the quantiser is symmetric.
    one_sided = SHAPES[name].min() >= 0
    for bits, symmetric in ((8, True), (8, False), (5, True)):
        levels = 2 ** (bits - (symmetric or not one_sided))
        extent = tensor.range("entropy", bits=bits, symmetric=symmetric).extent
        found = filled if extent == limit else round(extent / tensor.width)
        least = min(divergence(tensor, bins, levels) for bins in range(levels, filled + 1, 7))
        assert divergence(tensor, found, levels) <= least * (1 + 1e-9)


def test_zeros_do_not_change_entropy_or_mse(shapes: ActivationStatistics) -> None:
    """Half of the values after a ReLU are zeros, which every quantiser represents exactly."""
    more = statistics_of(SHAPES["relu"], np.zeros(10**6, np.float32))
    assert more.range("entropy") == shapes.tensors["relu"].range("entropy")
    for bits in (8, 10):
        assert more.range("mse", bits=bits) == shapes.tensors["relu"].range("mse", bits=bits)


def squared_error(values: npt.NDArray[np.float64], low: float, high: float, bits: int, symmetric: bool) -> float:
    """Squared error summed over the quantised and dequantised values."""
    if symmetric:
        most, step, zero = 2 ** (bits - 1) - 1, max(-low, high) / (2 ** (bits - 1) - 1), 0.0
        least = -most
    else:
        least, most, step = 0, 2**bits - 1, (high - low) / (2**bits - 1)
        zero = np.rint(-low / step)
    quantised = np.clip(np.rint(values / step) + zero, least, most)
    return float(((step * (quantised - zero) - values) ** 2).sum())


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_mse_matches_a_brute_force_search(shapes: ActivationStatistics, name: str, symmetric: bool, bits: int) -> None:
    values = SHAPES[name][:20_000].astype(np.float64)
    tensor = statistics_of(values)
    found = tensor.range("mse", bits=bits, symmetric=symmetric)
    full = tensor.range("max")
    extents = full.extent * np.linspace(0.05, 1, 96)
    candidates = [(max(full.low, -extent), min(full.high, extent)) for extent in extents]
    if not symmetric and full.low and full.high:
        shares = np.linspace(0.1, 1, 19)
        candidates += [(full.low * low, full.high * high) for low in shares for high in shares]
    least = min(squared_error(values, *ends, bits, symmetric) for ends in candidates)
    assert squared_error(values, found.low, found.high, bits, symmetric) <= 1.02 * least


@pytest.mark.parametrize("count", [1_000, 20_000, 200_000])
def test_mse_clips_a_single_outlier(count: int) -> None:
    """`count` values of unit spread and one at 100: the error `count (T / 127)^2 / 12 + (100 - T)^2` is least at T."""
    found = statistics_of(NORMAL[:count], [100.0]).range("mse", symmetric=True)
    assert found.extent == pytest.approx(100 / (1 + count / (12 * 127**2)), rel=0.03)


@pytest.mark.parametrize(("low", "high"), [(0.1, 1), (-1, -0.1), (-np.inf, 1), (0, np.nan), (np.nan, 0)])
def test_range_must_be_finite_and_contain_zero(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite and contain zero"):
        Range(low, high)


def uniform(low: float, high: float) -> ActivationStatistics:
    values = np.linspace(low, high, 100_000, dtype=np.float32)
    return ActivationStatistics(tensors={"x": statistics_of(values)}, frames=1)


@pytest.mark.parametrize(
    ("observed", "clipped", "log2_range_ratio"),
    [
        ((-1, 1), 0.0, 0.0),
        ((-2, 2), 0.5, -1.0),
        ((0, 4), 0.75, -2.0),
        ((-0.25, 0.25), 0.0, 2.0),
        ((-1, 3), 0.5, -1.585),
    ],
)
def test_coverage_of_uniform_values(observed: tuple[float, float], clipped: float, log2_range_ratio: float) -> None:
    found = coverage(uniform(-1, 1), uniform(*observed))
    outside = statistics_of(np.linspace(*observed, 100_000, dtype=np.float32)).share_outside(Range(-1, 1))
    assert outside == pytest.approx(clipped, abs=1e-3)
    assert found.log2_range_ratio["x"] == pytest.approx(log2_range_ratio, abs=2e-3)
    assert found.drift == abs(found.log2_range_ratio["x"])
    assert found.out_of_range_share == (clipped > 0)
    assert (found.problem is None) is (observed == (-1, 1))


def test_share_outside_of_uniform_values() -> None:
    values = uniform(-1, 1).tensors["x"]
    assert values.share_outside(Range(-0.5, 0.75)) == pytest.approx(0.375, abs=1e-3)


def test_coverage_of_zero_tensors() -> None:
    zero = ActivationStatistics(tensors={"x": statistics_of(np.zeros(9))}, frames=1)
    assert coverage(zero, zero).problem is None
    assert (
        coverage(zero, uniform(-1, 1)).log2_range_ratio["x"]
        == -coverage(uniform(-1, 1), zero).log2_range_ratio["x"]
        == -8
    )
    assert uniform(-1, 1).tensors["x"].share_outside(Range(0, 0)) == pytest.approx(1, abs=1e-3)
    assert coverage(zero, uniform(-1, 1)).problem


@pytest.fixture(scope="module")
def packaged() -> Callable[[Change], ActivationStatistics]:
    """Statistics of the shipped model's convolutions on the package's photos after a change."""
    path = FRAMES_DIR.parent / "nano.onnx"
    if not path.is_file():
        pytest.skip("the packaged model is not here")
    model = onnx.load(path)
    tensors = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    height, width = (each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    frames = [Resizer((height, width))(frame).copy() for frame in reference_frames()]
    return lambda change: collect(model, tensors, (np.ascontiguousarray(change(frame))[None] for frame in frames))


@pytest.fixture(scope="module")
def reference(packaged: Callable[[Change], ActivationStatistics]) -> ActivationStatistics:
    return packaged(lambda frame: frame)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda frame: frame[:, ::-1], True),
        (lambda frame: 255 - frame, True),
        (lambda frame: np.random.default_rng(0).integers(0, 256, frame.shape, dtype=np.uint8), False),
        (lambda frame: np.full_like(frame, 128), False),
    ],
    ids=["mirrored", "inverted", "noise", "grey"],
)
def test_noise_and_uniform_frames_are_another_domain(
    packaged: Callable[[Change], ActivationStatistics], reference: ActivationStatistics, change: Change, fits: bool
) -> None:
    assert (coverage(packaged(change), reference).problem is None) is fits
