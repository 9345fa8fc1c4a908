"""Live metric depth from one camera, on the edge, from a frozen CLIP and a learned mirror prompt.

>>> import mirrordepth_edge
>>> predictor = mirrordepth_edge.load()            # the shipped `nano`; or a .onnx, .plan, .safetensors
>>> depth_m = predictor(frame_rgb)                 # float32 [H, W], metres, at the frame's size
>>> for frame in mirrordepth_edge.stream("0"):     # a camera's newest frame, again and again
...     print(frame.depth_m.min())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DepthPredictor", "__version__", "load", "stream"]

if TYPE_CHECKING:
    from mirrordepth_edge.live.stream import stream
    from mirrordepth_edge.predictor import DepthPredictor, load


def __getattr__(name: str) -> Any:
    # On demand, so that `import mirrordepth_edge` and `mde --help` stay fast.
    if name in ("DepthPredictor", "load"):
        from mirrordepth_edge import predictor

        return getattr(predictor, name)
    if name == "stream":
        from mirrordepth_edge.live.stream import stream

        return stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
