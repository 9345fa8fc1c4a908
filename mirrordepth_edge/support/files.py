"""Read, write and hash files. A file that is written is complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mirrordepth_edge.errors import InputError, OptionError


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    If the block raises, including Ctrl-C, the temporary file is deleted.

    Args:
        durable: write the bytes to the disk before renaming, so that a power cut leaves no empty
            file. Too slow on an SD card for every frame of a video.

    Raises:
        InputError: the folder cannot be made or written.
    """
    # The suffix stays at the end: libraries choose the format by it.
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as written:  # Windows syncs only files that are open for writing
                os.fsync(written.fileno())
        temporary.chmod(mode)  # a library that replaced the file may have made it private
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, keep: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, and rename it to `target` if the block succeeds.

    Args:
        keep: whether a `target` that exists by then stays; otherwise it is replaced.

    Raises:
        InputError: the folder cannot be written.
    """
    temporary, old = (target.with_name(f".{secrets.token_hex(4)}{end}") for end in ("", ".old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if keep():
            return
        if target.exists():
            # Renamed, not deleted: another process would take a half-deleted folder for a damaged one.
            target.rename(old)
        temporary.rename(target)
    except OSError as error:
        if old.exists():
            with suppress(OSError):
                old.rename(target)
        if not keep():  # another process may have made it in the meantime
            raise unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with `atomic_write`. Paths become text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=os.fspath) + "\n", encoding="utf-8")


def read_json(path: Path, what: str, cure: str) -> Any:
    """Read a JSON file.

    Args:
        what: the user's word for the file, such as "result".
        cure: what to do if it is damaged.

    Raises:
        InputError: it does not exist, cannot be read, or is not JSON.
    """
    try:
        return json.loads(existing_file(path, what).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON.", str(error), cure) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}.", error.strerror or str(error), "Check its permissions.") from error


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a file that cannot be written."""
    return InputError(
        f"Cannot write {path}.",
        f"{error.strerror or error}",
        "Free space, check the folder's permissions, or choose another folder.",
    )


def ensure_folder(path: Path) -> Path:
    """Make a folder if need be, and check that it can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def require_suffix(path: Path, suffixes: tuple[str, ...], what: str, option: str = "-o", reader: str = "mde") -> None:
    """Refuse an output path whose suffix its readers do not know.

    Args:
        what: the user's word for the file, such as "a checkpoint".
        option: whose value the path is, for the message.
        reader: what recognises files by their suffix, for the message.

    Raises:
        OptionError: the path has another suffix.
    """
    if path.suffix not in suffixes:
        raise OptionError(
            f"{path} has the wrong suffix for {what}.",
            f"{reader} recognises it by its suffix, which must be {' or '.join(suffixes)}.",
            f"{option} {path.with_suffix(suffixes[0])}",
        )


def existing_file(path: Path, what: str) -> Path:
    """Return `path` if it is a file and not empty.

    Args:
        what: the user's word for the file, such as "checkpoint".

    Raises:
        InputError: it is not.
    """
    if not path.exists():
        raise InputError(f"There is no {what} at {path}.", "No such file.", "Check the path.")
    if not path.is_file():
        raise InputError(f"The {what} {path} is not a file.", "It is a folder or a device.", "Name a file.")
    if path.stat().st_size == 0:
        raise InputError(
            f"The {what} {path} is empty.",
            "It has 0 bytes, as after an interrupted copy or download.",
            "Copy or create the file again.",
        )
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
