"""Training in several processes at once, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from mirrordepth_edge.errors import OptionError

# The first process evaluates while the others wait.
PATIENCE = timedelta(hours=6)


def rank() -> int:
    """This process's number, from 0; 0 where there is but one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process speaks for all, before they have joined and after they have left as well."""
    return int(os.environ.get("RANK", "0")) == 0


def barrier() -> None:
    """Return once every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def all_gather(found: set[int]) -> set[int]:
    """What any process found."""
    if not dist.is_initialized():
        return found
    every: list[set[int]] = [set() for _ in range(world_size())]
    dist.all_gather_object(every, found)
    return set().union(*every)


@contextmanager
def init_distributed(device: str) -> Iterator[None]:
    """Join the processes that `torchrun` started, each with a GPU of its own where `device` is `cuda`.

    Does nothing in a process started in any other way. After an error a process does not leave: that
    would wait for the others, who wait for it. It exits, and `torchrun` ends them.

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
            why = f"Each trains on its own, and this machine has {count}."
            raise OptionError("There are more processes than GPUs.", why, f"torchrun --nproc-per-node {count}")
        torch.cuda.set_device(local)
        own_gpu = torch.device("cuda", local)
    dist.init_process_group("gloo" if own_gpu is None else "nccl", timeout=PATIENCE, device_id=own_gpu)
    yield
    dist.destroy_process_group()
