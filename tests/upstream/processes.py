# SPDX-License-Identifier: Apache-2.0
"""Runs a function in several processes that talk to each other, on the CPU."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist


def run_distributed(world_size: int) -> Callable[[Callable], Callable]:
    """Makes `function(rank, *arguments)` run as `function(*arguments)` in `world_size` processes.

    An exception of one of them is raised here.
    """

    def in_processes(function: Callable) -> Callable:
        def run(*arguments):
            with TemporaryDirectory() as folder:
                given = (world_size, Path(folder, "rendezvous"), function, arguments)
                torch.multiprocessing.spawn(one_process, given, nprocs=world_size)

        return run

    return in_processes


def one_process(rank: int, world_size: int, rendezvous: Path, function: Callable, arguments: tuple):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()
