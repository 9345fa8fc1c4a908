"""Which backend opens which artefact."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from mirrordepth_edge.backends.base import Backend, Probe, Session
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.manifest import Manifest, read_manifest
from mirrordepth_edge.support.files import existing_file

MODULES = {
    "torch": "pytorch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "trt.tensorrt",
    "tensorrt-rtx": "trt.tensorrt_rtx",
}
CHECKPOINT_SUFFIX = ".safetensors"
ONNX_SUFFIX = ".onnx"
PLAN_SUFFIXES = (".plan", ".engine")
INSTEAD_OF = {"onnxruntime": ("openvino",)}
"""Backends that open what is for another one, where they are asked for by name."""


def backend(name: str) -> Backend:
    """The backend module of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in MODULES:
        raise OptionError(
            f"There is no backend named {name!r}.", f"The backends are {', '.join(MODULES)}.", "Use one of these names."
        )
    return cast(Backend, import_module(f"mirrordepth_edge.backends.{MODULES[name]}"))


def probe_all() -> dict[str, Probe]:
    """What each backend says of this machine."""
    return {name: backend(name).probe() for name in MODULES}


def backend_for(path: Path, manifest: Manifest | None, wanted: str | None = None) -> str:
    """The backend that runs this artefact: the one it is for, or the one asked for if that opens it too.

    Raises:
        InputError: the file is of no kind that is known here.
        OptionError: there is no such backend, or it does not open such files.
    """
    own = _own_backend(path, manifest)
    if wanted in (None, own):
        return own
    backend(wanted)  # a name that is known
    able = (own, *INSTEAD_OF.get(own, ()))
    if wanted not in able:
        raise OptionError(
            f"{wanted} cannot open {path}.",
            f"Such a file runs in {' or '.join(able)}.",
            f"Leave --backend out, or name a file that is for {wanted}.",
        )
    return wanted


def _own_backend(path: Path, manifest: Manifest | None) -> str:
    if path.suffix == CHECKPOINT_SUFFIX:
        return "torch"
    if path.suffix == ONNX_SUFFIX:
        return "onnxruntime"
    if path.suffix in PLAN_SUFFIXES and manifest is not None and manifest.engine is not None:
        return manifest.engine.flavour
    raise InputError(
        f"{path} is no model that can be run.",
        "A model is a checkpoint (.safetensors), an ONNX file (.onnx) or an engine (.plan, .engine).",
        "Make one with mde export.",
    )


def open_session(path: Path, options: SessionOptions | None = None) -> tuple[Session, Manifest | None]:
    """Open an artefact with the backend it is for, or the one asked for, after checking it against its manifest.

    A plan is held to this machine too (`backends.trust`); what is doubtful of it is in the session's `notes`.

    Returns:
        The session, and the manifest at the session's size (None for a checkpoint, which describes itself).

    Raises:
        InputError: the file is not what its manifest says, or a plan was not built for this machine.
        OptionError: the options ask for what no backend can do with this artefact.
    """
    options = options or SessionOptions()
    manifest: Manifest | None = None
    doubts: tuple[str, ...] = ()
    if path.suffix in PLAN_SUFFIXES:
        from mirrordepth_edge.backends.trt.compatibility import check_compatibility

        admitted = check_compatibility(path, trust=options.trust, wanted=options.backend)
        manifest, doubts = admitted.manifest, admitted.notes
    elif options.trust:
        raise OptionError(
            f"{path} has no use for --trust.",
            "It is for plans, which are native code; other files are data.",
            "Leave --trust out.",
        )
    elif path.suffix == ONNX_SUFFIX:
        manifest = read_manifest(path)
    else:
        existing_file(path, "model")
    name = backend_for(path, manifest, options.backend)
    if options.bf16 and name != "openvino":
        raise OptionError(
            f"{name} has no use for --bf16.",
            "Only OpenVINO multiplies in bfloat16, on CPUs that can.",
            "Leave --bf16 out; for an ONNX file, --backend openvino.",
        )
    if path.suffix not in PLAN_SUFFIXES:
        _refuse_engine_options(name, options)
    session: Any = backend(name).open(path, manifest, options)
    if doubts:
        session.notes = (*doubts, *getattr(session, "notes", ()))
    return session, None if manifest is None else manifest.at(options.network_hw, options.batch)


def _refuse_engine_options(name: str, options: SessionOptions) -> None:
    asked = {
        f"in_flight={options.in_flight}": options.in_flight != 1,
        f"zero_copy={options.zero_copy}": options.zero_copy is not None,
        f"cuda_graph={options.cuda_graph}": not options.cuda_graph,
    }
    if useless := [option for option, given in asked.items() if given]:
        raise OptionError(
            f"{name} has no use for {', '.join(useless)}.",
            "Only engines take frames in flight, and are told of CUDA graphs and of memory shared with the GPU.",
            "Leave it out, or run an engine, as mde build makes it.",
        )
