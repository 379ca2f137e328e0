"""Draw and convert masks of units.

A unit is a square of pixels that is completely visible or completely hidden. The
units of an image are indexed row by row.
"""

from __future__ import annotations

import torch
from mmengine.dist import get_rank
from torch import Tensor


def mask_generator() -> torch.Generator:
    """Return a generator that depends on torch's seed and the process rank.

    The processes of a distributed training often have the same seed and would hide
    the same units.
    """
    seed = torch.randint(2**62, (), device='cpu').item()
    return torch.Generator().manual_seed(seed + get_rank())


def count_visible(units: int, mask_ratio: float) -> int:
    """Return the number of visible units.

    Raises:
        ValueError: No unit or every unit would be visible.
    """
    visible = int((1 - mask_ratio) * units + 1e-6)
    if not 0 < visible < units:
        raise ValueError(
            f'mask_ratio must leave some of the {units} units of an image visible '
            f'and hide others, got {mask_ratio}, which leaves {visible}')
    return visible


def random_units(masks: int, units: int, visible: int) -> Tensor:
    """Draw visible units: (masks, visible), each row in ascending order."""
    noise = torch.rand(masks, units, generator=mask_generator(), device='cpu')
    return noise.argsort(dim=1)[:, :visible].sort(dim=1).values


def one_of_each_cell(rows: int, columns: int) -> Tensor:
    """Draw one unit of each 2x2 cell: (rows / 2, columns / 2), rounded up.

    Cells at the border of a grid with an odd side have fewer units.
    """
    size = [-(-side // 2) for side in (rows, columns)]
    row, column = torch.randint(
        2, (2, *size), generator=mask_generator(), device='cpu')
    row += 2 * torch.arange(size[0], device='cpu')[:, None]
    column += 2 * torch.arange(size[1], device='cpu')
    return row.clamp_(max=rows - 1) * columns + column.clamp_(max=columns - 1)


def order_by_cell(visible: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sort visible units by the 2x2 cells that contain them.

    Args:
        visible: (V,), in ascending order.
        grid: Rows and columns of units.

    Returns:
        The units in the order of their cells (1, V), and the position of each of
        ``visible`` in it (V,).

    Raises:
        ValueError: A cell has no unit or several.
    """
    columns = -(-grid[1] // 2)
    cells = visible // grid[1] // 2 * columns + visible % grid[1] // 2
    order = cells.argsort()
    expected = torch.arange(-(-grid[0] // 2) * columns, device=cells.device)
    if not torch.equal(cells[order], expected):
        raise ValueError("for sampling='uniform' mask must show one unit of each "
                         f'cell of 2x2, got the units {visible.tolist()}')
    return visible[order].view(1, -1), order.argsort()


def on_device_of(indices: Tensor, tensor: Tensor) -> Tensor:
    """Copy indices to the device of a tensor, without synchronisation."""
    return indices.to(tensor.device, non_blocking=True)


def hidden_units(visible: Tensor, units: int) -> Tensor:
    """Return the hidden units (masks, units - V) for visible ones (masks, V)."""
    hidden = torch.ones(len(visible), units, dtype=torch.bool,
                        device=visible.device).scatter_(1, visible, False)
    return hidden.nonzero()[:, 1].view(len(visible), -1)
