"""Restore an image with a trained model, and draw the result beside the input."""

from __future__ import annotations

import argparse
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from ..io.checkpoints import read_state_dict
from ..io.files import check_writable
from ..restoration import IPT, TTSR, Degrade
from ..restoration.degradations import TASKS, read_image, resize
from ..restoration.metrics import psnr
from ..restoration.ttsr import SCALE
from .common import add_cfg_options, add_config, load_model, load_weights
from .quickstart.pictures import write_rows

ERRORS = (OSError, RuntimeError, TypeError, ValueError)
GAP = 8  # white pixels between panels
# Red, yellow, blue and green: upper left, upper right, lower left, lower right.
CORNERS = np.array([(230, 40, 40), (250, 220, 40), (40, 60, 230), (40, 200, 80)])


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        description='Restore an image with an IPT or a TTSR. Two files are written: '
        'the restored image, and a picture with the degraded, the restored and, '
        'with --degrade, the clean image side by side.')
    add_config(parser)
    parser.add_argument('checkpoint', help='the trained model')
    parser.add_argument('image', help='image file')
    parser.add_argument('--task', default='sr4', choices=tuple(TASKS),
                        help='the degradation to undo (default: %(default)s)')
    parser.add_argument(
        '--reference', nargs='+', metavar='IMAGE',
        help='images, of any sizes, from which TTSR may take textures')
    parser.add_argument(
        '--origin', action='store_true',
        help='with --reference: also write a picture with _origin added to the name. '
        'It shows the references in false colours, the image in the colours of the '
        'places its textures come from, and the similarity (black: the lowest one of '
        'the image, white: 1)')
    parser.add_argument(
        '--degrade', action='store_true',
        help='the image is clean: degrade it first, and print the PSNR')
    parser.add_argument('--flips', action='store_true',
                        help='average over the eight flips and quarter turns')
    parser.add_argument(
        '--out', help='file of the restored image (default: IMAGE_TASK.png in the '
        'current folder); the picture has _beside added to this name')
    parser.add_argument('--force', action='store_true',
                        help='replace existing files')
    add_cfg_options(parser)
    return parser


def main(args: argparse.Namespace) -> dict:
    """Run the command.

    Returns:
        The file names, and with ``--degrade`` the PSNR in dB of the restored
        image and of the degraded one, which is enlarged bicubically if needed.
    """
    out = Path(args.out or f'{Path(args.image).stem}_{args.task}.png')
    beside, origin = (out.with_name(f'{out.stem}_{name}{out.suffix}')
                      for name in ('beside', 'origin'))
    if args.origin and not args.reference:
        raise ValueError('--origin needs --reference, got none')
    for path in (out, beside, *[origin] * args.origin):
        check_writable(path, suffixes=('.png', '.jpg', '.bmp', '.tif'),
                       read=(args.image, args.checkpoint, *(args.reference or ())),
                       force=args.force)
    model = _load(args.config, args.checkpoint, args.cfg_options)
    image = _rgb(args.image)
    clean = None
    if args.degrade:
        results = Degrade(args.task, seed=0).transform(
            dict(img=image, img_path=args.image))
        image, clean = results['img'], results['gt_img']
    if isinstance(model, TTSR):
        if args.task != 'sr4' or args.flips:
            raise ValueError("TTSR takes --task sr4, without --flips, got "
                             f'{args.task}{" with --flips" if args.flips else ""}')
        references = [_maps(_rgb(path)) for path in args.reference or ()]
        restored = restore_image(model, image, references or None)
    elif args.reference:
        raise ValueError('--reference is for models such as TTSR, got '
                         f'{type(model).__name__}')
    else:
        restored = restore_image(model, image, args.task, args.flips)
    shown = resize(image.astype(np.float32), restored.shape[:2])
    panels = [_pixels(shown), restored] + ([clean] if args.degrade else [])
    write_rows([restored], out)
    write_rows([_side_by_side(panels)], beside)
    found = dict(restored=str(out), picture=str(beside))
    if args.origin:
        write_rows(_origin(model, image, references), origin)
        found['origin'] = str(origin)
    if clean is not None:
        found.update(
            psnr_input=_psnr(_pixels(shown), clean), psnr=_psnr(restored, clean))
        print(f'PSNR {found["psnr"]:.2f} dB, of the degraded image '
              f'{found["psnr_input"]:.2f} dB')
    print(f'Restored image: {out}\nPicture: {beside}'
          + f'\nOrigin of the textures: {origin}' * args.origin)
    return found


def _load(config: str | Path | Config, checkpoint: str | Path,
          cfg_options: dict | None) -> nn.Module:
    """Load the trained model in evaluation mode.

    Raises:
        ValueError: It does not restore images, or the checkpoint is of another
            model.
    """
    model, _ = load_model(config, cfg_options)
    if not isinstance(model, (IPT, TTSR)):
        raise ValueError('the model must restore images of any size, as IPT and TTSR '
                         f'do, got {type(model).__name__}')
    load_weights(model, read_state_dict(checkpoint).state_dict, checkpoint)
    return model.eval()


def restore_image(model: nn.Module, image: np.ndarray,
                  *args: object) -> np.ndarray:
    """Restore one image.

    Args:
        model: An :class:`~fpt_plugin.IPT` or :class:`~fpt_plugin.TTSR`.
        image: (H, W, 3), RGB, in 0..255.
        *args: Further arguments of its ``restore``, after the images.

    Returns:
        (s * H, s * W, 3), uint8.
    """
    restored = model.restore(_maps(image), *args)[0]  # (3, sH, sW)
    return _pixels(restored.permute(1, 2, 0).numpy())  # (sH, sW, 3)


def _origin(model: TTSR, image: np.ndarray,
            references: list[torch.Tensor]) -> list[np.ndarray]:
    """Draw where textures come from: rows of pictures (H, W, 3).

    The first row has the references in false colours, one colour in each corner; the
    second one the image, each pixel in the colour of its place in the references,
    and the similarity there, black for the lowest one and white for 1.
    """
    number, position, similarity = model.matches(_maps(image), references)
    sizes = [reference.shape[2:] for reference in references]
    starts = np.cumsum([0] + [width for _, width in sizes])
    extent = np.array([max(height for height, _ in sizes), starts[-1]])  # of the row
    shown = []
    for reference, start in zip(references, starts):
        grey = reference[0].mean(0).numpy() / 255  # (Hr, Wr)
        rows, columns = np.indices(grey.shape)
        colours = _false_colours(rows / extent[0], (columns + start) / extent[1])
        shown.append(_pixels(colours * (0.3 + 0.7 * grey[..., None])))
    number, (rows, columns) = number[0].numpy(), position[0].numpy()  # (H, W) each
    places = _false_colours(
        rows / extent[0], (columns + starts[number]) / extent[1])
    similarity = similarity[0, 0].numpy()[..., None].repeat(3, 2)  # (H, W, 3)
    low = similarity.min()
    weights = 255 * (similarity - low) / max(1 - low, 1e-6)
    enlarged = [_pixels(x).repeat(SCALE, 0).repeat(SCALE, 1) for x in (places, weights)]
    pad = [mmcv.impad(x, shape=(extent[0], x.shape[1]), pad_val=(255, ) * 3)
           for x in shown]
    return [_side_by_side(pad), _side_by_side(enlarged)]


def _false_colours(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Blend four colours of corners: shares (H, W) of both sides to (H, W, 3)."""
    rows, columns = rows[..., None], columns[..., None]
    top = (1 - columns) * CORNERS[0] + columns * CORNERS[1]
    bottom = (1 - columns) * CORNERS[2] + columns * CORNERS[3]
    return (1 - rows) * top + rows * bottom


def _rgb(path: str) -> np.ndarray:
    """Read an RGB image (H, W, 3)."""
    return read_image(path)[..., ::-1].copy()


def _maps(image: np.ndarray) -> torch.Tensor:
    """Convert (H, W, 3) to float32 of (1, 3, H, W)."""
    return torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None]


def _pixels(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


def _psnr(image: np.ndarray, clean: np.ndarray) -> float:
    return psnr(*(torch.tensor(x).permute(2, 0, 1) for x in (image, clean)))


def _side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate(
        [part for panel in panels for part in (panel, gap)][:-1], axis=1)
