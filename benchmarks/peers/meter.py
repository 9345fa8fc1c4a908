"""Evaluate METER-XXS (Papa et al., IEEE TCSVT 2023), or use it as a teacher.

    git clone https://github.com/lorenzopapa5/METER       (MIT; results are of commit 0f9a49ad)
    python benchmarks/peers/meter.py METER evaluate nyu/test
    python benchmarks/peers/meter.py METER label labelled PHOTOGRAPHS...

`evaluate` measures it on NYU Depth v2 with the protocol of `mde evaluate`. `label` writes views of photographs with
METER's depth as a folder for `mde train`. METER was trained on some 50,000 NYU frames and assumes NYU's Kinect, which
`camera.json` states.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from mirrordepth_edge.config import DataConfig
from mirrordepth_edge.data.choose import CAMERA_FILE, CONVENTIONS, NYU_CAMERA, choose_dataset
from mirrordepth_edge.evaluation.evaluate import Protocol, evaluate
from mirrordepth_edge.imaging.draw import save_png
from mirrordepth_edge.imaging.images import read_image
from mirrordepth_edge.imaging.postprocess import resize_depth_to, to_millimetres
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame
from mirrordepth_edge.support.files import ensure_folder, write_json

Depth = npt.NDArray[np.float32]

INPUT_HW = (192, 256)
# ImageNet's. METER's repository does not state its input scaling; on NYU's training images, this one results in the
# true depth scale (median ratio 1.00 with a spread of 3 %), a range of 0 to 1 in 0.70.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
CENTIMETRES = 100.0

VIEW_HW = (240, 320)
MIN_VIEW = 0.5
MAX_MARGIN_RANGE = 4.0
"""Maximum range of grey levels in a line of a uniform margin."""
BATCH = 16


def load(clone: Path) -> torch.nn.Module:
    """Load METER-XXS with its NYU weights on the CPU."""
    # Its source hard-codes a GPU, imports a module that is not in the repository, and has two unbalanced lines.
    source = (clone / "architecture.py").read_text(encoding="utf-8")
    source = source.replace("cuda:0", "cpu").replace("RGB_img_res[2])), dims", "RGB_img_res[2]), dims")
    sys.modules["globals"] = SimpleNamespace(RGB_img_res=(3, *INPUT_HW))  # type: ignore[assignment]
    names: dict[str, Any] = {"__name__": "architecture"}
    exec(compile(source, "architecture.py", "exec"), names)
    model: torch.nn.Module = names["build_METER_model"]("cpu", "xxs")
    model.load_state_dict(torch.load(clone / "models" / "build_model_best_nyu_xxs", map_location="cpu"))
    return model.eval()


@torch.no_grad()
def predict(model: torch.nn.Module, frames: Sequence[Frame], *, flip: bool) -> Depth:
    """Predict metres, float32 `[N, 48, 64]`; averaged with the mirrored image if `flip`."""
    pixels = np.stack([resize_frame(frame, INPUT_HW) for frame in frames])
    images = torch.from_numpy((pixels.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    depth = model(images)
    if flip:
        depth = (depth + model(images.flip(3)).flip(3)) / 2
    return (depth[:, 0] / CENTIMETRES).numpy()  # type: ignore[no-any-return]


def without_margins(picture: Frame) -> Frame:
    """The picture without the plain lines that letterboxing leaves at its sides."""
    for _ in range(4):  # each side in turn
        edge = next((row for row, line in enumerate(picture) if line.std(axis=0).max() >= MAX_MARGIN_RANGE), 0)
        picture = np.rot90(picture[edge:])
    return np.ascontiguousarray(picture)


def views(picture: Frame, count: int, rng: np.random.Generator) -> Iterator[Frame]:
    """Yield the whole image, then random crops of it, all at `VIEW_HW`."""
    for view in range(count):
        share = rng.uniform(MIN_VIEW, 1.0) if view else 1.0
        height, width = round(picture.shape[0] * share), round(picture.shape[1] * share)
        top = rng.integers(0, picture.shape[0] - height + 1)
        left = rng.integers(0, picture.shape[1] - width + 1)
        window = np.ascontiguousarray(picture[top : top + height, left : left + width])
        yield resize_frame(window, VIEW_HW)


def label(model: torch.nn.Module, photographs: Sequence[Path], out: Path, count: int) -> None:
    """Write `count` views of each photograph with their depth."""
    for folder in ("rgb", "depth"):
        ensure_folder(out / folder)
    kinect = NYU_CAMERA
    camera = {"fx": kinect.fx_px, "fy": kinect.fy_px, "width": kinect.width_px, "height": kinect.height_px}
    write_json(out / CAMERA_FILE, camera)
    waiting: list[tuple[str, Frame]] = []

    def flush() -> None:
        for (name, frame), depth_m in zip(waiting, predict(model, [f for _, f in waiting], flip=True), strict=True):
            save_png(out / "depth" / f"{name}.png", to_millimetres(resize_depth_to(depth_m, frame.shape[:2])))
            cv2.imwrite(str(out / "rgb" / f"{name}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        waiting.clear()

    for index, path in enumerate(track(photographs, "labelling")):
        picture = without_margins(read_image(path))
        rng = np.random.default_rng(index)
        waiting += [(f"{index:06d}_{view}", frame) for view, frame in enumerate(views(picture, count, rng))]
        if len(waiting) >= BATCH:
            flush()
    if waiting:
        flush()


def with_timing(model: torch.nn.Module, spent: list[float]) -> Callable[[Frame], Depth]:
    def predict_one(frame: Frame) -> Depth:
        started = perf_counter()
        depth_m = resize_depth_to(predict(model, [frame], flip=False)[0], frame.shape[:2])
        spent.append(perf_counter() - started)
        return depth_m

    return predict_one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("evaluate")
    one.add_argument("root", type=Path)
    other = commands.add_parser("label")
    other.add_argument("out", type=Path)
    other.add_argument("photographs", type=Path, nargs="+", help="files, or folders of .jpg and .png files")
    other.add_argument("--views", type=int, default=2)
    arguments = parser.parse_args()
    model = load(arguments.clone)
    if arguments.command == "label":
        files = [file for path in arguments.photographs for file in (path.rglob("*") if path.is_dir() else [path])]
        photographs = sorted(file for file in files if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        label(model, photographs, arguments.out, arguments.views)
        return
    spent: list[float] = []
    nyu = choose_dataset(DataConfig(root=arguments.root, kind="nyu"), "test")
    protocol = Protocol(limits_m=CONVENTIONS["nyu"].depth_limits_m, crop=CONVENTIONS["nyu"].crop)
    result = evaluate(with_timing(model, spent), nyu, protocol)
    print(json.dumps({"mean": vars(result.mean), "boundary_f1_wide": vars(result.boundary_f1_wide)}, indent=1))
    print(f"{np.median(spent) * 1000:.1f} ms per image (median), PyTorch eager, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
