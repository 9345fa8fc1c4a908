"""Small models with random weights, and pictures, so that nothing is downloaded."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.config import CLIP_MEAN, CLIP_STD, PRESETS, ModelConfig
from mirrordepth_edge.data.sample import InMemory, Sample
from mirrordepth_edge.imaging.preprocess import Frame

if TYPE_CHECKING:
    from onnx import ModelProto

    from mirrordepth_edge.model.network import DepthNetwork

# One thread a process, child processes too: models this small gain nothing from more, and several workers that take
# all cores each hold each other up. Before torch is first imported, and for pytest-xdist's workers before NumPy is.
for _library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
cv2.setNumThreads(1)

TINY_CLIP = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "head_width": 16, "patch_size": 16},
    # All of CLIP's vocabulary, so that open_clip's own tokeniser fits.
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first, else one worker would end long after the others."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _folders_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and settings in a folder of this run, or of this worker: neither the user's nor another worker's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("user")
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(folder / kind.lower()))
        yield


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """A session that was asked for more threads sets them for the whole process, and would for all tests after it."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_child_processes() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, which child processes would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_onnx_runtime_thread() -> Iterator[None]:
    """ONNX Runtime heeds no environment variable, takes all cores unless told, and its threads wait by spinning."""
    import onnxruntime

    create = onnxruntime.InferenceSession.__init__

    def create_with_one(self: Any, model: Any, sess_options: Any = None, *rest: Any, **others: Any) -> None:
        settings = onnxruntime.SessionOptions() if sess_options is None else sess_options
        settings.intra_op_num_threads = settings.intra_op_num_threads or 1
        create(self, model, settings, *rest, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "__init__", create_with_one)
        yield


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Waits for what another thread or process does, however busy the machine is; fails if it never comes."""

    def wait(holds: Callable[[], object]) -> None:
        give_up_s = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < give_up_s, "it did not happen"
            time.sleep(0.001)

    return wait


@pytest.fixture(scope="session")
def tiny_vit_config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A ViT CLIP of four narrow blocks, run at another size and aspect than its own."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    folder = tmp_path_factory.mktemp("clip_configs")
    (folder / "mirrordepth-test-tiny.json").write_text(json.dumps(TINY_CLIP), encoding="utf-8")
    open_clip.add_model_config(folder)
    return ModelConfig(
        preset="tiny",
        clip_model="mirrordepth-test-tiny",
        pretrained="random-0",
        taps=(0, 1, 2),
        size_hw=(64, 96),
        mean=CLIP_MEAN,
        std=CLIP_STD,
        stride=16,
        size_multiple=16,
        mirror_length=16,
        width=32,
        heads=4,
        feedforward=64,
    )


@pytest.fixture(scope="session")
def tiny_map_config() -> ModelConfig:
    """`nano` with random towers, at a small size: taps that are maps."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    return replace(PRESETS["nano"], preset="tiny-map", pretrained="random-0", size_hw=(64, 96))


@pytest.fixture(scope="session")
def tiny_network(tiny_vit_config: ModelConfig) -> DepthNetwork:
    """Shared by all tests, which leave it as it is; what changes one makes its own."""
    from mirrordepth_edge.model.network import create_network

    return create_network(tiny_vit_config).eval()


@pytest.fixture(scope="session")
def tiny_map_network(tiny_map_config: ModelConfig) -> DepthNetwork:
    """Shared by all tests, which leave it as it is; what changes one makes its own."""
    from mirrordepth_edge.model.network import create_network

    return create_network(tiny_map_config).eval()


@pytest.fixture(scope="session", params=["vit", "map"])
def network(request: pytest.FixtureRequest) -> DepthNetwork:
    """Each kind of tower in turn."""
    name = {"vit": "tiny_network", "map": "tiny_map_network"}[request.param]
    return request.getfixturevalue(name)


@pytest.fixture(scope="session")
def exported() -> Callable[[DepthNetwork], ModelProto]:
    """Makes the plain FP32 graph of one of the shared networks, once for all tests; each gets a copy of its own."""
    done: dict[int, ModelProto] = {}

    def export(network: DepthNetwork) -> ModelProto:
        from mirrordepth_edge.config import ExportConfig
        from mirrordepth_edge.export.trace import export_onnx

        if id(network) not in done:
            done[id(network)] = export_onnx(network, ExportConfig())
        copy = type(done[id(network)])()
        copy.CopyFrom(done[id(network)])
        return copy

    return export


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_network: DepthNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_network`, saved. Tests that damage it copy it first."""
    from mirrordepth_edge.model.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(tiny_network, path, training={"epochs": 3, "abs_rel": 0.25})
    return path


@pytest.fixture(scope="session")
def frames() -> list[Frame]:
    """Three smooth pictures, uint8 RGB, of sizes that nothing divides."""
    rng = np.random.default_rng(0)
    pictures = []
    for height, width in ((97, 131), (120, 75), (61, 203)):
        coarse = rng.uniform(0, 255, (5, 7, 3)).astype(np.float32)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        pictures.append(smooth.clip(0, 255).astype(np.uint8))
    return pictures


@pytest.fixture(scope="session")
def samples(frames: list[Frame]) -> InMemory:
    """Four pictures whose depth can be read off their brightness, with a border of no depth."""
    made = []
    for index, frame in enumerate([*frames, frames[0][::-1]]):
        depth_m = 1 + 4 * frame.mean(axis=2, dtype=np.float32) / 255
        depth_m[:5] = 0
        made.append(Sample(str(index), np.ascontiguousarray(frame), depth_m))
    return InMemory(samples=made)


@pytest.fixture
def rgbd_folder(tmp_path: Path) -> Path:
    """Twelve pictures of 60x80 pixels with 16-bit depth in millimetres, on disk; some pixels have no depth."""
    rng = np.random.default_rng(3)
    for part in ("rgb", "depth"):
        (tmp_path / "rgbd" / part).mkdir(parents=True)
    for index in range(12):
        coarse = rng.uniform(0, 255, (4, 5, 3)).astype(np.float32)
        frame = cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
        depth_mm = (1000 + 12 * frame.mean(axis=2)).astype(np.uint16)
        depth_mm[:, :4] = 0
        cv2.imwrite(str(tmp_path / "rgbd" / "rgb" / f"{index:02d}.png"), frame)
        cv2.imwrite(str(tmp_path / "rgbd" / "depth" / f"{index:02d}.png"), depth_mm)
    return tmp_path / "rgbd"
