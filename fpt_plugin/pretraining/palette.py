"""A palette: few colours for all pixels, so that an image is a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..functional.checks import no_autocast
from ..layers.checks import check_positive_int

MIDDLE = 127.5
CHUNK = 2**16  # points whose distances to all centres are held at a time
# Red, green and blue in the luma, here blue first, as mmcv reads files.
LUMA = (0.114, 0.587, 0.299)


class Palette(nn.Module):
    """Turn images into numbers of colours, and back.

    The colours are a buffer, so they travel with the checkpoint. Without colours the
    palette is empty until :meth:`fit` finds some or a checkpoint brings them.

    Args:
        size: Number of colours.
        colours: (size, 3) in 0..255, channels as in the files, or the path of an
            ``.npy`` file of them; None: none yet.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``size`` is no int.
        ValueError: ``size`` is below 2, or ``colours`` are not as above.
    """

    def __init__(self, size: int = 512,
                 colours: str | Path | Sequence[Sequence[float]] | None = None
                 ) -> None:
        super().__init__()
        if check_positive_int('colours', size) < 2:
            raise ValueError(f'colours must be at least 2, got {size}')
        self.size, self.fitted = size, False
        self.register_buffer('colours', torch.full((size, 3), torch.nan))
        if colours is not None:
            self.set(_read(colours))

    def set(self, colours: Tensor) -> None:
        """Take colours (size, 3) in 0..255.

        Raises:
            ValueError: They are of another shape, or outside of the range.
        """
        if colours.shape != self.colours.shape:
            raise ValueError(f'palette must be {tuple(self.colours.shape)}, got '
                             f'{tuple(colours.shape)}')
        if not ((colours >= 0) & (colours <= 255)).all():
            raise ValueError('palette must be in 0..255, got values from '
                             f'{colours.min():g} to {colours.max():g}')
        self.colours.copy_(colours)
        self.fitted = True

    def fit(self, pixels: Tensor, seed: int = 0, iterations: int = 50) -> None:
        """Find the colours of pixels by k-means, dark ones first.

        Args:
            pixels: (N, 3) in 0..255.
            seed: Of the random start; the same pixels and seed give the same colours.
            iterations: The most; it ends when nothing changes.

        Raises:
            ValueError: There are fewer pixels than colours.
        """
        if len(pixels) < self.size:
            raise ValueError(f'a palette of {self.size} colours needs as many '
                             f'pixels, got {len(pixels)}')
        centres = k_means(pixels.float().cpu() - MIDDLE, self.size, seed, iterations)
        dark_first = (centres @ torch.tensor(LUMA)).argsort(stable=True)
        self.set((centres[dark_first] + MIDDLE).clamp(0, 255))

    def tokens(self, images: Tensor) -> Tensor:
        """Find the nearest colours: (B, 3, H, W) in 0..255 to (B, H, W)."""
        self.check_fitted()
        with no_autocast(images.device):
            pixels = images.movedim(1, 3).to(self.colours.dtype)
            found = nearest(pixels.reshape(-1, 3) - MIDDLE, self.colours - MIDDLE)
        return found.view(pixels.shape[:3])

    def images(self, tokens: Tensor) -> Tensor:
        """Look colours up: (B, H, W) to (B, 3, H, W) in 0..255."""
        self.check_fitted()
        return self.colours[tokens].movedim(3, 1)

    def round_trip_error(self, images: Tensor) -> float:
        """Compute the root mean squared error, in grey levels, of images as tokens.

        Args:
            images: (B, 3, H, W) in 0..255.
        """
        error = self.images(self.tokens(images)) - images
        return error.square().mean().sqrt().item()

    def check_fitted(self) -> None:
        """Raise for an empty palette.

        Raises:
            ValueError: There are no colours yet.
        """
        if not self.fitted:
            raise ValueError(
                f'the palette must have its {self.size} colours: FitPaletteHook finds '
                'them before a training, a checkpoint brings them')

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Refuse another number of colours, which mmengine would only log."""
        colours = state_dict.get(f'{prefix}colours')
        if colours is not None and colours.shape != self.colours.shape:
            raise ValueError(
                f'the palette of the checkpoint has {len(colours)} colours, that of '
                f'the model {self.size}: set colours={len(colours)}')
        super()._load_from_state_dict(state_dict, prefix, *args)
        if colours is not None:
            self.fitted = bool(colours.isfinite().all())

    def extra_repr(self) -> str:
        """Describe the palette."""
        return f'{self.size}' + ', empty' * (not self.fitted)


def _read(colours: str | Path | Sequence[Sequence[float]]) -> Tensor:
    if isinstance(colours, (str, Path)):
        if not Path(colours).is_file():
            raise FileNotFoundError(f'palette must be a file, and {colours} is not '
                                    'there')
        colours = np.load(colours, allow_pickle=False)
    return torch.as_tensor(np.asarray(colours, dtype=np.float32))


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Find the nearest centre of each point: (N, D) and (K, D) to (N,)."""
    squares = centres.square().sum(1)  # (K,)
    # A point's own square is the same for all centres.
    return torch.cat([
        torch.addmm(squares, chunk, centres.T, alpha=-2).argmin(1)
        for chunk in points.split(CHUNK)])


def k_means(points: Tensor, count: int, seed: int = 0,
            iterations: int = 50) -> Tensor:
    """Find centres with small squared distances to points, by Lloyd's iterations.

    Args:
        points: (N, D), on the CPU.
        count: Number of centres, at most N.
        seed: Of the start, which is that of k-means++.
        iterations: The most; it ends when no centre moves.

    Returns:
        (count, D). Where there are fewer different points, centres are repeated.
    """
    centres = _spread_out(points, count, torch.Generator().manual_seed(seed))
    for _ in range(iterations):
        chosen = nearest(points, centres)
        members = chosen.bincount(minlength=count)[:, None]
        sums = torch.zeros_like(centres, dtype=torch.float64).index_add_(
            0, chosen, points.double())
        moved = torch.where(  # a centre without points stays
            members > 0, sums / members.clamp(min=1), centres.double()).to(points)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _spread_out(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw points, each the more likely the farther it is from those before."""
    weights = torch.ones(len(points))
    distances = torch.full_like(points[:, 0], torch.inf)
    chosen = []
    for _ in range(count):
        # The search in a running sum takes any number of weights.
        edges = weights.double().cumsum(0)
        shot = torch.rand((), dtype=torch.float64, generator=generator) * edges[-1]
        chosen.append(int(torch.searchsorted(edges, shot, right=True).clamp(
            max=len(points) - 1)))
        distances = torch.minimum(
            distances, (points - points[chosen[-1]]).square().sum(1))
        weights = distances if distances.any() else torch.ones_like(distances)
    return points[chosen]
