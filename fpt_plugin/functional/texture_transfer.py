"""Transfer textures from a reference image to similar regions of a query (TTSR).

For each query pixel, the patch around it is compared with all patches of the key, which
are features of the reference. The values at the best match are copied (hard attention),
weighted by their similarity elsewhere (soft attention). This needs three steps:

1. **Best matches** (:func:`_best_matches`). The dot product of two patches is a sum of
   dot products of pixels, one for each offset in the patch. So a row of the query is
   multiplied by all key pixels, and patch scores are sums of shifted pixel scores. Only
   the scores of a few rows exist at once.
2. **Soft attention** (:func:`_relevance`). The cosine of each patch and its match,
   computed again by differentiable operators.
3. **Transfer** (:func:`_transfer`). With values s times as large as the key, each key
   pixel has a square of s x s values. An output square is covered by the matched
   patches of all query pixels around it. It is the mean of the squares that these
   patches have there; squares are selected by their index.

Neither all scores nor unfolded patches are ever held.

Shapes: query h x w, key hk x wk, K key pixels of all references together, C channels,
scale factors s.
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

EPS = 1e-12  # least norm of a patch, as in F.normalize


def texture_transfer(
        query: Tensor, key: Tensor | Sequence[Tensor],
        values: Sequence[Tensor | Sequence[Tensor]],
        patch: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    """Transfer textures of a reference (TTSR, arXiv 2006.04139, Eq. 3 to 6).

    Patches of query and key are normalised; beyond the border the maps are zero. A
    transferred patch that reaches beyond its reference is zero there. Where patches
    overlap, the output is their mean.

    Args:
        query: (B, C, h, w), features of the image to enlarge.
        key: (B, C, hk, wk), features of the reference; a list for several references.
        values: A tensor (B, C_i, s_i * hk, s_i * wk) for each scale; for several
            references a list of tensors for each scale.
        patch: Side of the patches, odd.

    Returns:
        A tensor (B, C_i, s_i * h, s_i * w) for each scale; the soft attention
        (B, 1, h, w), which is the cosine of the matched patches; and the index of the
        matching key pixel (B, h, w) in 0 .. hk * wk - 1. The indices of several
        references follow each other. Values have gradients; query and key have those
        of the soft attention only, because the choice of a match has none.

    Raises:
        TypeError: One of the maps is not a floating point tensor.
        ValueError: Shapes do not match, or ``patch`` is not odd and positive.
    """
    keys = [key] if isinstance(key, Tensor) else list(key)
    scales = [[v] if isinstance(v, Tensor) else list(v) for v in values]
    factors = _check(query, keys, scales, patch)
    with no_autocast(query.device):
        dtype = accumulation_dtype(query, *keys)
        wide, wide_keys = query.to(dtype), [k.to(dtype) for k in keys]
        index = _best_matches(wide.detach(), [k.detach() for k in wide_keys], patch)
        neighbours = _neighbours(keys, patch, index.device)
        soft = _relevance(wide, wide_keys, index, neighbours, patch)
    outs: list[Tensor] = [query] * len(scales)
    # The largest scale first, while few other tensors are held.
    for scale in sorted(range(len(scales)), key=factors.__getitem__, reverse=True):
        outs[scale] = _transfer(scales[scale], factors[scale], index, neighbours, patch)
    return outs, soft.to(query.dtype), index


def _check(query: Tensor, keys: list[Tensor], scales: list[list[Tensor]],
           patch: int) -> list[int]:
    """Check the arguments and return the factor s of each scale.

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
    """Compute the norm of the patch around each pixel: (B, C, H, W) to (B, H, W)."""
    squares = maps.square().sum(dim=1, keepdim=True)  # (B, 1, H, W)
    sums = patch**2 * F.avg_pool2d(squares, patch, 1, patch // 2)
    return sums.clamp(min=EPS**2).sqrt()[:, 0]


def _add_shifted_(out: Tensor, x: Tensor, dims: Sequence[int], shift: int) -> None:
    """Add x[i + shift, ...] to out[i, ...] in some dimensions, where both exist."""
    for dim in dims:
        length = out.shape[dim] - abs(shift)
        if length <= 0:
            return
        out = out.narrow(dim, max(0, -shift), length)
        x = x.narrow(dim, max(0, shift), length)
    out += x


@torch.no_grad()
def _best_matches(query: Tensor, keys: list[Tensor], patch: int) -> Tensor:
    """Find the key pixel with the most similar patch: indices (B, h, w).

    The query is processed in groups of columns whose scores fit the budget.
    """
    norms = [_patch_norms(key, patch).reciprocal() for key in keys]  # (B, hk, wk) each
    counts = [key.shape[2] * key.shape[3] for key in keys]
    index = torch.empty(query.shape[0], *query.shape[2:], dtype=torch.long,
                        device=query.device)
    radius, width = patch // 2, query.shape[3]
    fitting = score_budget(query.device) // (max(counts) * (patch + 3))
    columns = max(1, fitting - 2 * radius)
    for image in range(len(query)):
        for left in range(0, width, columns):
            right = min(width, left + columns)
            # Their patches reach further columns on both sides.
            low, high = max(0, left - radius), min(width, right + radius)
            inner = slice(left - low, right - low)
            found = [
                _best_of_rows(query[image, :, :, low:high], key[image], norm[image],
                              radius, inner) for key, norm in zip(keys, norms)]
            scores, numbers = zip(*found)  # (h, columns) for each reference
            best = torch.stack(scores).argmax(dim=0)  # the reference, (h, columns)
            offset = torch.tensor([sum(counts[:i]) for i in range(len(keys))],
                                  device=query.device)
            # (references, h, columns)
            numbers = torch.stack(numbers) + offset[:, None, None]
            index[image, :, left:right] = numbers.gather(0, best[None])[0]
    return index


def _best_of_rows(query: Tensor, key: Tensor, norm: Tensor, radius: int,
                  inner: slice) -> tuple[Tensor, Tensor]:
    """Find the best match of each query pixel in one key, row by row.

    Args:
        query: (C, h, w), some columns of the query.
        key: (C, hk, wk).
        norm: (hk, wk), the reciprocal norm of each patch.
        radius: patch // 2.
        inner: The columns to return; the others are only reached by patches.

    Returns:
        Scores divided by the norm of the key's patch, and indices of the key pixels,
        (h, columns) each.
    """
    height, flat = query.shape[1], key.flatten(1)  # flat (C, hk * wk)
    # Allocated once: large tensors that come and go fragment a CPU's memory.
    pixel_scores = query.new_empty(query.shape[2], *norm.shape)  # (w, hk, wk)
    row_scores = torch.empty_like(pixel_scores)
    out = torch.empty_like(row_scores[inner])  # (columns, hk, wk)
    # Ring buffer for the scores of the rows of a patch.
    ring = query.new_empty(2 * radius + 1, *out.shape)  # (patch, columns, hk, wk)
    done = 0
    scores, numbers = [], []
    for row in range(height):
        while done < min(height, row + radius + 1):
            # Scores of pixels: (w, C) @ (C, hk * wk)
            torch.mm(query[:, done].T, flat, out=pixel_scores.flatten(1))
            # Sum over the columns of a patch, in query and key.
            row_scores.copy_(pixel_scores)
            for shift in range(1, radius + 1):
                _add_shifted_(row_scores, pixel_scores, (0, 2), shift)
                _add_shifted_(row_scores, pixel_scores, (0, 2), -shift)
            ring[done % len(ring)] = row_scores[inner]
            done += 1
        # Sum over the rows of a patch: those of the key are shifted.
        out.copy_(ring[row % len(ring)])
        for near in range(max(0, row - radius), min(height, row + radius + 1)):
            if near != row:
                _add_shifted_(out, ring[near % len(ring)], (1, ), near - row)
        best, number = out.mul_(norm).flatten(1).max(dim=1)  # (columns,) each
        scores.append(best)
        numbers.append(number)
    return torch.stack(scores), torch.stack(numbers)


def _offsets(patch: int) -> list[tuple[int, int]]:
    """List the offsets (rows, columns) of a patch's pixels from its centre."""
    radius = patch // 2
    steps = range(-radius, radius + 1)
    return [(row, column) for row in steps for column in steps]


def _neighbours(keys: list[Tensor], patch: int,
                device: torch.device) -> dict[tuple[int, int], Tensor]:
    """Compute for each offset the index of the neighbour of each key pixel, (K,).

    A neighbour outside its reference has the index K.
    """
    counts = [key.shape[2] * key.shape[3] for key in keys]
    outside = sum(counts)
    radius = patch // 2
    grids = []  # (hk + patch - 1, wk + patch - 1) each
    for number, key in enumerate(keys):
        first = sum(counts[:number])
        grid = torch.arange(first, first + counts[number], device=device)
        grids.append(F.pad(grid.view(key.shape[2:]), [radius] * 4, value=outside))
    return {
        (row, column): torch.cat([
            grid[radius + row:grid.shape[0] - radius + row,
                 radius + column:grid.shape[1] - radius + column].flatten()
            for grid in grids])
        for row, column in _offsets(patch)}


def _index_in_batch(index: Tensor, count: int) -> Tensor:
    """Convert indices into ``count`` rows of each image: (B, n) to (B * n,)."""
    first = count * torch.arange(len(index), device=index.device)
    return (index + first[:, None]).flatten()


def _flatten_squares(maps: list[Tensor], side: int) -> Tensor:
    """List the squares of all maps, followed by a square of zeros.

    Args:
        maps: (B, C, side * H, side * W) each, with H * W squares; K in all maps.
        side: Side of a square.

    Returns:
        (B, K + 1, C * side * side).
    """
    width = maps[0].shape[1] * side**2
    counts = [x.shape[2] * x.shape[3] // side**2 for x in maps]
    out = maps[0].new_zeros(len(maps[0]), sum(counts) + 1, width)
    first = 0
    for x, count in zip(maps, counts):
        squares = split_squares(x, side)  # (B, H, W, C, side, side)
        out[:, first:first + count].view(squares.shape).copy_(squares)
        first += count
    return out


def _relevance(query: Tensor, keys: list[Tensor], index: Tensor,
               neighbours: dict[tuple[int, int], Tensor], patch: int) -> Tensor:
    """Compute the cosine of each patch and its match: (B, 1, h, w)."""
    pixels = _flatten_squares(keys, 1)  # (B, K + 1, C)
    # (B, K)
    norms = torch.cat([_patch_norms(key, patch).flatten(1) for key in keys], dim=1)
    height, width = query.shape[2:]
    padded = F.pad(query, [patch // 2] * 4)  # (B, C, h + patch - 1, w + patch - 1)

    def dot_products(padded: Tensor, pixels: Tensor, row: int, column: int) -> Tensor:
        """Multiply the pixels at one offset of all patches: (B, h * w)."""
        top, left = patch // 2 + row, patch // 2 + column
        # (B, C, h * w)
        queries = padded[:, :, top:top + height, left:left + width].flatten(2)
        numbers = _index_in_batch(
            neighbours[row, column][index.flatten(1)], pixels.shape[1])
        matched = pixels.flatten(0, 1).index_select(0, numbers)  # (B * h * w, C)
        matched = matched.view(len(queries), -1, queries.shape[1])  # (B, h * w, C)
        return torch.einsum('bcn,bnc->bn', queries, matched)

    total = torch.zeros_like(index, dtype=query.dtype).flatten(1)  # (B, h * w)
    for row, column in neighbours:
        # The backward pass selects the pixels again. Saving them would take the
        # memory of patch^2 maps.
        total = total + checkpoint(
            dot_products, padded, pixels, row, column, use_reentrant=False)
    total = total / norms.gather(1, index.flatten(1))
    return (total.view_as(index) / _patch_norms(query, patch))[:, None]


class _CoveringSquares:
    """Which squares of values the matched patches put on each query pixel.

    The patch of the query pixel at an offset covers the present pixel at minus this
    offset. If its match is key pixel m, the square is that of m's neighbour at minus
    the offset.

    Args:
        index: (B, h, w), the matches.
        neighbours: Result of :func:`_neighbours`.
        patch: Side of the patches.
        width: Numbers of a square.
        count: Squares of an image, including the one of zeros, K + 1.
    """

    def __init__(self, index: Tensor, neighbours: dict[tuple[int, int], Tensor],
                 patch: int, width: int, count: int) -> None:
        self.neighbours, self.radius, self.count = neighbours, patch // 2, count
        self.size = index.shape
        # A pixel outside the query has no match and covers nothing.
        self.index = F.pad(index, [self.radius] * 4, value=-1)
        numbers = score_budget(index.device) // 16
        self.rows = max(1, numbers // (len(index) * index.shape[2] * width))

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
        """Iterate over some rows of the query at a time.

        Yields:
            The rows; for each offset the squares' indices in the batch, (B * n,) with
            n = rows * w; and how many patches cover each pixel, (B, n).
        """
        batch, height, width = self.size
        for top in range(0, height, self.rows):
            bottom = min(height, top + self.rows)
            numbers, coverage = [], 0
            for row, column in self.neighbours:
                matches = self.index[
                    :, self.radius + row + top:self.radius + row + bottom,
                    self.radius + column:self.radius + column + width].flatten(1)
                exists = matches >= 0  # (B, n)
                squares = self.neighbours[-row, -column][matches.clamp(min=0)]
                # The last square is the one of zeros.
                squares = squares.where(exists, squares.new_tensor(self.count - 1))
                numbers.append(_index_in_batch(squares, self.count))
                coverage = coverage + exists.long()
            yield slice(top, bottom), numbers, coverage


class _Transfer(torch.autograd.Function):
    """Compute the mean of the squares that cover each query pixel.

    The backward pass adds each gradient to the squares it came from. The one that
    autograd would derive fills a tensor of all squares for each offset.
    """

    @staticmethod
    def forward(ctx, covering: _CoveringSquares, factor: int,
                *values: Tensor) -> Tensor:
        """Transfer values (B, C, s * hk, s * wk) to (B, C, s * h, s * w).

        There is one tensor of values for each reference.
        """
        all_squares = _flatten_squares(list(values), factor)  # (B, K + 1, C * s * s)
        ctx.covering, ctx.factor = covering, factor
        ctx.shapes = [value.shape for value in values]
        batch, height, width = covering.size
        out = all_squares.new_empty(
            batch, values[0].shape[1], factor * height, factor * width)
        out_squares = split_squares(out, factor)  # (B, h, w, C, s, s)
        flat = all_squares.flatten(0, 1)  # (B * (K + 1), C * s * s)
        for rows, numbers, coverage in covering:
            total = flat.index_select(0, numbers[0])  # (B * n, C * s * s)
            for more in numbers[1:]:
                total += flat.index_select(0, more)
            total /= coverage.view(-1, 1)
            out_squares[:, rows] = total.view(out_squares[:, rows].shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Add the gradient (B, C, s * h, s * w) to the squares that were averaged."""
        covering, factor = ctx.covering, ctx.factor
        grad_squares = split_squares(grad, factor)  # (B, h, w, C, s, s)
        width = grad_squares[0, 0, 0].numel()  # C * s * s
        out = grad.new_zeros(len(grad), covering.count, width)  # (B, K + 1, C * s * s)
        for rows, numbers, coverage in covering:
            # (B * n, C * s * s)
            mean_grad = grad_squares[:, rows].reshape(-1, width) / coverage.view(-1, 1)
            for squares in numbers:
                out.flatten(0, 1).index_add_(0, squares, mean_grad)
        grads, first = [], 0
        for shape in ctx.shapes:
            value = grad.new_empty(shape)
            squares = split_squares(value, factor)  # (B, hk, wk, C, s, s)
            count = squares.shape[1] * squares.shape[2]
            squares.copy_(out[:, first:first + count].view(squares.shape))
            grads.append(value)
            first += count
        return None, None, *grads


def _transfer(values: list[Tensor], factor: int, index: Tensor,
              neighbours: dict[tuple[int, int], Tensor], patch: int) -> Tensor:
    """Average the squares of the matched patches: (B, C, s * h, s * w)."""
    count = 1 + sum(v.shape[2] * v.shape[3] for v in values) // factor**2
    covering = _CoveringSquares(
        index, neighbours, patch, values[0].shape[1] * factor**2, count)
    return _Transfer.apply(covering, factor, *values)
