"""Several processes that compute together on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from torch import Tensor, distributed, multiprocessing


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


def train_in_ddp(model: BaseModel, steps: Iterable[tuple], rate: float) -> list[Tensor]:
    """Train on the arguments of each step; return the parameters.

    DDP fails in a step if a parameter had no gradient in the step before.
    """
    parallel = MMDistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for arguments in steps:
        optimizer.zero_grad()
        parallel(*arguments, mode='loss')['loss'].backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]
