"""Processes of our own: a module's `main` in a fresh interpreter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

BOOTSTRAP: Final = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
from importlib import import_module, util
name, root = sys.argv[1:3]
del sys.argv[1:3]
if util.find_spec(name.partition(".")[0]) is None:
    sys.path.append(root)
import_module(name).main()
"""
"""With `-c` Python puts an empty name on the path, which means the working directory, and with `-m` that directory
itself: a `tensorrt.py` in it would run. `-P`, which does without, came with Python 3.11
(https://docs.python.org/3/using/cmdline.html#cmdoption-P); `-I` would drop PYTHONPATH and the user's packages too. The
package's own folder is put last, for who runs it from a copy that is not installed."""


def command_of(module: str) -> tuple[str, ...]:
    """The words that run `main` of a module of this package, as `python -m` would, but for the working directory, from
    which nothing is imported. Arguments may follow."""
    return (sys.executable, "-c", BOOTSTRAP, module, str(ROOT))
