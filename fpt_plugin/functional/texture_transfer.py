"""Textures of a reference picture for the places that look like it (TTSR).

Each place of the query takes the part of the reference whose patch is most like
its own (hard attention). Scores of all pairs of patches are made row by row, from
products of pixels, and parts are taken by their number: neither all scores nor
unfolded patches are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .budget import score_budget
from .checks import accumulation_dtype, check_floating, no_autocast
from .squares import split_squares

EPS = 1e-12  # least norm of a patch, as F.normalize has it


def texture_transfer(
        query: Tensor, key: Tensor | Sequence[Tensor],
        values: Sequence[Tensor | Sequence[Tensor]],
        patch: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    """Transfer textures of a reference (TTSR, arXiv 2006.04139, Eq. 3 to 6).

    Patches of query and key are normalised, and zero beyond the maps. A matched
    part that reaches beyond its reference has zeros there; where parts overlap,
    their mean is taken.

    Args:
        query: (B, C, h, w), features of the picture to enlarge.
        key: (B, C, hk, wk), features of the reference; for several references a
            list of such.
        values: A tensor (B, C_i, s_i * hk, s_i * wk) for each scale; for several
            references a list of such for each scale.
        patch: Side of the patches, odd.

    Returns:
        A tensor (B, C_i, s_i * h, s_i * w) for each scale; the soft attention
        (B, 1, h, w), the cosine of the matched patches; and the number of the
        match (B, h, w) in the hk * wk places of the key, those of several
        references one behind the other. Values get gradients, query and key those
        of the soft attention; the choice has none.

    Raises:
        TypeError: One of the maps is not a floating point tensor.
        ValueError: Shapes do not fit, or ``patch`` is not odd and positive.
    """
    keys = [key] if isinstance(key, Tensor) else list(key)
    scales = [[v] if isinstance(v, Tensor) else list(v) for v in values]
    factors = _check(query, keys, scales, patch)
    with no_autocast(query.device):
        dtype = accumulation_dtype(query, *keys)
        wide, wide_keys = query.to(dtype), [k.to(dtype) for k in keys]
        index = _best_matches(wide.detach(), [k.detach() for k in wide_keys], patch)
        tables = _neighbours(keys, patch, index.device)
        soft = _relevance(wide, wide_keys, index, tables, patch)
    outs: list[Tensor] = [query] * len(scales)
    # The largest first, while little else is held.
    for scale in sorted(range(len(scales)), key=factors.__getitem__, reverse=True):
        outs[scale] = _transfer(scales[scale], factors[scale], index, tables, patch)
    return outs, soft.to(query.dtype), index


def _check(query: Tensor, keys: list[Tensor], scales: list[list[Tensor]],
           patch: int) -> list[int]:
    """The enlargement of each scale.

    Raises:
        TypeError: See :func:`texture_transfer`.
        ValueError: See :func:`texture_transfer`.
    """
    check_floating(dict(query=query, **{f'key[{i}]': k for i, k in enumerate(keys)},
                        **{f'values[{i}]': v for i, scale in enumerate(scales)
                           for v in scale}))
    if not isinstance(patch, int) or patch < 1 or patch % 2 == 0:
        raise ValueError(f'patch must be odd and positive, got {patch}')
    if query.dim() != 4 or 0 in query.shape:
        raise ValueError('query must be (B, C, h, w) and not empty, got '
                         f'{tuple(query.shape)}')
    if not keys:
        raise ValueError('key must have at least one reference, got none')
    for key in keys:
        if key.dim() != 4 or key.shape[:2] != query.shape[:2] or 0 in key.shape:
            raise ValueError(f'key must be {tuple(query.shape[:2])} and a height '
                             f'and width, got {tuple(key.shape)}')
    factors = []
    for number, value in enumerate(scales):
        shapes = [tuple(v.shape) for v in value]
        factor = shapes[0][2] // keys[0].shape[2] if shapes and len(
            shapes[0]) == 4 else 0
        wanted = [(len(query), shapes[0][1], factor * k.shape[2],
                   factor * k.shape[3]) for k in keys] if factor else None
        if shapes != wanted:
            raise ValueError(
                f'values[{number}] must be (B, C, s * hk, s * wk) for each key of '
                f'{[tuple(k.shape) for k in keys]} with one s, got {shapes}')
        factors.append(factor)
    return factors


def _patch_norms(maps: Tensor, patch: int) -> Tensor:
    """Norm of the patch around each pixel: (B, C, H, W) to (B, H, W)."""
    squares = maps.square().sum(dim=1, keepdim=True)
    sums = patch**2 * F.avg_pool2d(squares, patch, 1, patch // 2)
    return sums.clamp(min=EPS**2).sqrt()[:, 0]


def _add_shifted_(out: Tensor, x: Tensor, dims: Sequence[int], by: int) -> None:
    """out[i, ...] += x[i + by, ...] in some dimensions, where both are."""
    for dim in dims:
        length = out.shape[dim] - abs(by)
        if length <= 0:
            return
        out = out.narrow(dim, max(0, -by), length)
        x = x.narrow(dim, max(0, by), length)
    out += x


@torch.no_grad()
def _best_matches(query: Tensor, keys: list[Tensor], patch: int) -> Tensor:
    """Number of the most similar patch of all keys, (B, h, w)."""
    norms = [_patch_norms(key, patch).reciprocal() for key in keys]
    places = [key.shape[2] * key.shape[3] for key in keys]
    index = torch.empty(query.shape[0], *query.shape[2:], dtype=torch.long,
                        device=query.device)
    radius, width = patch // 2, query.shape[3]
    most = score_budget(query.device) // (max(places) * (patch + 3))
    columns = max(1, most - 2 * radius)
    for image in range(len(query)):
        for left in range(0, width, columns):
            right = min(width, left + columns)
            # With the columns that patches of these reach.
            low, high = max(0, left - radius), min(width, right + radius)
            inner = slice(left - low, right - low)
            found = [
                _best_of_rows(query[image, :, :, low:high], key[image], norm[image],
                              radius, inner) for key, norm in zip(keys, norms)]
            scores, numbers = zip(*found)
            best = torch.stack(scores).argmax(dim=0)  # the reference, (h, columns)
            offset = torch.tensor([sum(places[:i]) for i in range(len(keys))],
                                  device=query.device)
            numbers = torch.stack(numbers) + offset[:, None, None]
            index[image, :, left:right] = numbers.gather(0, best[None])[0]
    return index


def _best_of_rows(query: Tensor, key: Tensor, norm: Tensor, radius: int,
                  inner: slice) -> tuple[Tensor, Tensor]:
    """Row by row, the best score over the query's norm, and its number.

    Args:
        query: (C, h, w).
        key: (C, hk, wk).
        norm: (hk, wk), one over the norm of each patch.
        radius: Of the patches.
        inner: The columns that are wanted.

    Returns:
        (h, columns) each.
    """
    height, flat = query.shape[1], key.flatten(1)
    # Made once: large tensors that come and go leave holes in a CPU's memory.
    pixels = query.new_empty(query.shape[2], *norm.shape)
    total = torch.empty_like(pixels)
    out = torch.empty_like(total[inner])
    sums = query.new_empty(2 * radius + 1, *out.shape)  # of the rows of a patch
    done = 0
    scores, numbers = [], []
    for row in range(height):
        while done < min(height, row + radius + 1):
            # (w, C) (C, hk * wk): products of pixels
            torch.mm(query[:, done].T, flat, out=pixels.flatten(1))
            total.copy_(pixels)
            for by in range(1, radius + 1):
                _add_shifted_(total, pixels, (0, 2), by)
                _add_shifted_(total, pixels, (0, 2), -by)
            sums[done % len(sums)] = total[inner]
            done += 1
        out.copy_(sums[row % len(sums)])
        for near in range(max(0, row - radius), min(height, row + radius + 1)):
            if near != row:
                _add_shifted_(out, sums[near % len(sums)], (1, ), near - row)
        best, number = out.mul_(norm).flatten(1).max(dim=1)
        scores.append(best)
        numbers.append(number)
    return torch.stack(scores), torch.stack(numbers)


def _offsets(patch: int) -> list[tuple[int, int]]:
    radius = patch // 2
    steps = range(-radius, radius + 1)
    return [(row, column) for row in steps for column in steps]


def _neighbours(keys: list[Tensor], patch: int,
                device: torch.device) -> dict[tuple[int, int], Tensor]:
    """For each offset the number of the place there, for all places of the keys.

    A place beyond its reference has the number behind the last one.
    """
    places = [key.shape[2] * key.shape[3] for key in keys]
    last = sum(places)
    radius = patch // 2
    padded = []
    for number, key in enumerate(keys):
        first = sum(places[:number])
        grid = torch.arange(first, first + places[number], device=device)
        padded.append(F.pad(grid.view(key.shape[2:]), [radius] * 4, value=last))
    return {
        (row, column): torch.cat([
            grid[radius + row:grid.shape[0] - radius + row,
                 radius + column:grid.shape[1] - radius + column].flatten()
            for grid in padded])
        for row, column in _offsets(patch)}


def _numbers(index: Tensor, count: int) -> Tensor:
    """Places in a batch of ``count`` for each image: (B, n) to (B * n)."""
    first = count * torch.arange(len(index), device=index.device)
    return (index + first[:, None]).flatten()


def _places(maps: list[Tensor], side: int) -> Tensor:
    """Squares of all maps, and one of zeros.

    Args:
        maps: (B, C, side * H, side * W) each.
        side: Of the squares.

    Returns:
        (B, K + 1, C * side * side).
    """
    width = maps[0].shape[1] * side**2
    counts = [x.shape[2] * x.shape[3] // side**2 for x in maps]
    out = maps[0].new_zeros(len(maps[0]), sum(counts) + 1, width)
    first = 0
    for x, count in zip(maps, counts):
        squares = split_squares(x, side)
        out[:, first:first + count].view(squares.shape).copy_(squares)
        first += count
    return out


def _relevance(query: Tensor, keys: list[Tensor], index: Tensor,
               tables: dict[tuple[int, int], Tensor], patch: int) -> Tensor:
    """Cosine of each patch and its match: (B, 1, h, w)."""
    pixels = _places(keys, 1)
    norms = torch.cat([_patch_norms(key, patch).flatten(1) for key in keys], dim=1)
    height, width = query.shape[2:]
    padded = F.pad(query, [patch // 2] * 4)

    def products(padded: Tensor, pixels: Tensor, row: int, column: int) -> Tensor:
        top, left = patch // 2 + row, patch // 2 + column
        mine = padded[:, :, top:top + height, left:left + width].flatten(2)
        numbers = _numbers(tables[row, column][index.flatten(1)], pixels.shape[1])
        theirs = pixels.flatten(0, 1).index_select(0, numbers)
        theirs = theirs.view(len(mine), -1, mine.shape[1])  # (B, h * w, C)
        return torch.einsum('bcn,bnc->bn', mine, theirs)

    total = torch.zeros_like(index, dtype=query.dtype).flatten(1)
    for row, column in tables:
        # A backward pass takes the pixels again: kept, they were patch**2 maps.
        total = total + checkpoint(
            products, padded, pixels, row, column, use_reentrant=False)
    total = total / norms.gather(1, index.flatten(1))
    return (total.view_as(index) / _patch_norms(query, patch))[:, None]


class _Parts:
    """Which places cover each pixel of the query, some rows at a time.

    Args:
        index: (B, h, w), the matches.
        tables: Of :func:`_neighbours`.
        patch: Side of the patches.
        width: Numbers of a place.
        places: How many an image has, the one of zeros included.
    """

    def __init__(self, index: Tensor, tables: dict[tuple[int, int], Tensor],
                 patch: int, width: int, places: int) -> None:
        self.tables, self.radius, self.places = tables, patch // 2, places
        self.size = index.shape
        # A place beyond the query has no match: it covers nothing.
        self.index = F.pad(index, [self.radius] * 4, value=-1)
        numbers = score_budget(index.device) // 16
        self.rows = max(1, numbers // (len(index) * index.shape[2] * width))

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
        """Rows; for each offset the places (B * rows * w); how many cover, (B, n)."""
        batch, height, width = self.size
        for top in range(0, height, self.rows):
            bottom = min(height, top + self.rows)
            numbers, count = [], 0
            for row, column in self.tables:
                # The part of the place at this offset covers the present one,
                # which lies at minus the offset in it.
                theirs = self.index[
                    :, self.radius + row + top:self.radius + row + bottom,
                    self.radius + column:self.radius + column + width].flatten(1)
                there = theirs >= 0
                places = self.tables[-row, -column][theirs.clamp(min=0)]
                places = places.where(there, places.new_tensor(self.places - 1))
                numbers.append(_numbers(places, self.places))
                count = count + there.long()
            yield slice(top, bottom), numbers, count


class _Transfer(torch.autograd.Function):
    """Means of matched parts; the gradient is added to the places they are of.

    What autograd makes of it fills a tensor of all places for every offset.
    """

    @staticmethod
    def forward(ctx, parts: _Parts, factor: int, *values: Tensor) -> Tensor:
        """(B, C, s * hk, s * wk) each to (B, C, s * h, s * w)."""
        places = _places(list(values), factor)  # (B, K + 1, C * s * s)
        ctx.parts, ctx.factor = parts, factor
        ctx.shapes = [value.shape for value in values]
        batch, height, width = parts.size
        out = places.new_empty(
            batch, values[0].shape[1], factor * height, factor * width)
        squares, flat = split_squares(out, factor), places.flatten(0, 1)
        for rows, numbers, count in parts:
            total = flat.index_select(0, numbers[0])
            for more in numbers[1:]:
                total += flat.index_select(0, more)
            total /= count.view(-1, 1)
            squares[:, rows] = total.view(squares[:, rows].shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Add each part's share of the gradient to its place."""
        parts, factor = ctx.parts, ctx.factor
        squares = split_squares(grad, factor)
        width = squares[0, 0, 0].numel()
        out = grad.new_zeros(len(grad), parts.places, width)
        for rows, numbers, count in parts:
            shares = squares[:, rows].reshape(-1, width) / count.view(-1, 1)
            for places in numbers:
                out.flatten(0, 1).index_add_(0, places, shares)
        grads, first = [], 0
        for shape in ctx.shapes:
            value = grad.new_empty(shape)
            place = split_squares(value, factor)
            count = place.shape[1] * place.shape[2]
            place.copy_(out[:, first:first + count].view(place.shape))
            grads.append(value)
            first += count
        return None, None, *grads


def _transfer(values: list[Tensor], factor: int, index: Tensor,
              tables: dict[tuple[int, int], Tensor], patch: int) -> Tensor:
    """Mean of the matched parts that cover a pixel: (B, C, s * h, s * w)."""
    places = 1 + sum(v.shape[2] * v.shape[3] for v in values) // factor**2
    parts = _Parts(index, tables, patch, values[0].shape[1] * factor**2, places)
    return _Transfer.apply(parts, factor, *values)
