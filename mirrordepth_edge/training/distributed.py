"""Distributed training with `torchrun`; every function also works in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from mirrordepth_edge.errors import OptionError

# The other processes wait while the first one evaluates.
TIMEOUT = timedelta(hours=6)


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the first process; also valid before and after the process group exists."""
    return int(os.environ.get("RANK", "0")) == 0


def barrier() -> None:
    """Wait until every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def all_gather(items: set[int]) -> set[int]:
    """Union of the sets of all processes."""
    if not dist.is_initialized():
        return items
    gathered: list[set[int]] = [set() for _ in range(world_size())]
    dist.all_gather_object(gathered, items)
    return set().union(*gathered)


@contextmanager
def init_distributed(device: str) -> Iterator[None]:
    """Join the process group of `torchrun` inside the block; does nothing if not started by `torchrun`.

    Args:
        device: `cuda` gives each process a GPU of its own.

    Raises:
        OptionError: there are more processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    own_gpu = None
    if device == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            why = f"Each process needs one; this machine has {count}."
            raise OptionError("There are more processes than GPUs.", why, f"torchrun --nproc-per-node {count}")
        torch.cuda.set_device(local)
        own_gpu = torch.device("cuda", local)
    dist.init_process_group("gloo" if own_gpu is None else "nccl", timeout=TIMEOUT, device_id=own_gpu)
    yield
    # Not in a `finally`: after an error this would wait for the other processes, which wait for this one. The failed
    # process exits instead, and torchrun ends the others.
    dist.destroy_process_group()
