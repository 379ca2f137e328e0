"""Several processes that compute together on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def together(function: Callable, *args, folder: Path, count: int = 2) -> list:
    """Call a function in each of several processes; return the results by rank.

    The processes must be able to import the function: it cannot be in a test file. They
    exchange files in ``folder``, which must be empty.

    Raises:
        torch.multiprocessing.ProcessRaisedException: A process failed.
    """
    multiprocessing.spawn(
        _process, args=(count, str(folder), function, args), nprocs=count)
    return [torch.load(folder / f'{rank}.pt') for rank in range(count)]


def _process(rank: int, count: int, folder: str, function: Callable,
             args: tuple) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=count,
        timeout=timedelta(minutes=5))
    try:
        torch.save(function(*args), Path(folder, f'{rank}.pt'))
        distributed.barrier()
    finally:
        # without this a process may abort or hang in gloo's threads
        distributed.destroy_process_group()
