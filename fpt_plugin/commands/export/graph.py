"""Export backbone and neck of a detector or segmentor as one graph.

Heads, anchors and NMS are left to deployment tools. The graph has only plain
operators, because the eager versions of the functions in functional/ are used. The
files take any height and width that are multiples of ``divisor``: then the strides
between the levels are the same at every size, so they can be constants.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.utils import digit_version
from torch import Tensor, nn

from ...io.files import check_writable, replacing
from ...layers import RenderingTransformer
from ...layers.checks import check_positive_int
from ...necks import FPT
from ...openmmlab.models import image_channels, unwrapped

OPSET = 18  # the lowest that torch's exporter writes without conversion
FORMATS = ('.onnx', '.pt2')
# Shortest and longest sides of an exported graph, in multiples of the divisor.
# torch treats dimensions of 0 and 1 as constants.
SHORTEST = 2
LONGEST = 512


@dataclass(frozen=True)
class Export:
    """Description of an exported file.

    Attributes:
        out: The file.
        opset: Version of ONNX's operators; None for ``.pt2``.
        divisor: Height and width must be multiples of it; None: they must be
            ``shape``.
        shape: Height and width at which the graph was captured.
        outputs: Channels of each map.
        differences: The largest difference to torch by height and width, relative
            to the largest value of the map; empty if the file could not be run.
    """

    out: Path
    opset: int | None
    divisor: int | None
    shape: tuple[int, int]
    outputs: tuple[int, ...]
    differences: dict[tuple[int, int], float]


class Features(nn.Module):
    """Copy of a model's backbone and neck.

    Args:
        model: A detector or segmentor.

    Raises:
        ValueError: It has no backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model = unwrapped(model)
        parts = [model.backbone, getattr(model, 'neck', None)]
        self.channels = image_channels(model)
        self.parts = nn.ModuleList(
            copy.deepcopy(part) for part in parts if part is not None)
        self.eval()
        for part in self.parts:
            # Not chained: mmdet's MobileNetV2.eval() returns None.
            part.eval()
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the neck from a normalised image (B, C, H, W)."""
        x = image
        for part in self.parts:
            x = part(x)
        return tuple(x) if isinstance(x, (list, tuple)) else (x, )


def export(model: nn.Module,
           out: str | Path,
           shape: Sequence[int] = (256, 320),
           *,
           divisor: int | None = 32,
           opset: int = OPSET,
           checks: Sequence[Sequence[int]] = (),
           force: bool = False) -> Export:
    """Write backbone and neck as ONNX or as a program of torch.export.

    Args:
        model: A detector or segmentor, on the CPU.
        out: A ``.onnx`` file, or ``.pt2`` for torch.export.load.
        shape: Height and width of the image at which the graph is captured,
            multiples of ``divisor``.
        divisor: Height and width of other images must be multiples of it; None:
            they must be ``shape``.
        opset: Version of ONNX's operators, at least 18.
        checks: Heights and widths, besides ``shape``, at which the file is
            compared with torch; empty: one is chosen.
        force: Whether to replace ``out``.

    Returns:
        Description of the file, with its differences to torch.

    Raises:
        FileExistsError: ``out`` exists already.
        OSError: It cannot be written.
        RuntimeError: The model cannot be exported, the file does not agree
            with torch, or torch is too old.
        TypeError: A number is not an int.
        ValueError: An argument is out of range.
        ImportError: ONNX is not installed.
    """
    out = Path(out)
    sizes = [_size('shape', shape, divisor)]
    sizes += [_size('checks', size, divisor) for size in checks]
    if divisor is not None and not checks:
        # Check a second size: a side may have become a constant in the graph.
        sizes.append(tuple(
            side + step if side + step <= LONGEST * divisor else side - step
            for side, step in zip(sizes[0], (divisor, 2 * divisor))))
    if divisor is None and len(set(sizes)) > 1:
        raise ValueError('checks must be the shape where divisor is None, got '
                         f'{sizes[1:]} and shape={sizes[0]}')
    check_writable(out, suffixes=FORMATS, force=force)
    if check_positive_int('opset', opset) < OPSET:
        raise ValueError(f'opset must be at least {OPSET}, got {opset}')
    if out.suffix == '.onnx':
        _require('onnx', 'onnxscript')
    _check_environment()
    if digit_version(torch.__version__) < digit_version('2.6'):
        raise RuntimeError('exporting needs torch 2.6 or newer, got '
                           f'{torch.__version__}')
    features = revert_sync_batchnorm(Features(model))
    refuse_compiled_operators(features)
    image = torch.randn(1, features.channels, *sizes[0])
    with torch.no_grad():
        fix_strides(features, image)
        maps = features(image)
        with _named_failures(features, divisor):
            program = _capture(features, image, divisor)
            with replacing(out) as temporary:
                if out.suffix == '.onnx':
                    _write_onnx(program, temporary, opset, len(maps))
                else:
                    torch.export.save(program, str(temporary))
                # The file gets its final name only after it has been run.
                differences = {
                    size: difference(temporary, features, size)
                    for size in dict.fromkeys(sizes)
                } if out.suffix == '.pt2' or _installed('onnxruntime') else {}
    return Export(
        out=out,
        opset=opset if out.suffix == '.onnx' else None,
        divisor=divisor,
        shape=sizes[0],
        outputs=tuple(x.shape[1] for x in maps),
        differences=differences)


# ---------------------------------------------------------------- strides


def fix_strides(features: nn.Module, image: Tensor) -> None:
    """Replace the strides that FPT computes from the sizes of its maps by constants.

    The strides of key pooling and of the Rendering Transformers must be constants
    in the graph. If all levels halve exactly, they are the same at every size.

    Args:
        features: The model, changed in place.
        image: An image to run it with.
    """
    handles = [
        module.register_forward_pre_hook(
            lambda module, args: module.fix_strides(*args))
        for module in features.modules()
        if isinstance(module, (FPT, RenderingTransformer))
    ]
    features(image)
    for handle in handles:
        handle.remove()


# -------------------------------------------------------------------- the graph


def _capture(features: nn.Module, image: Tensor,
             divisor: int | None) -> torch.export.ExportedProgram:
    dynamic = None
    if divisor is not None:
        limits = dict(min=SHORTEST, max=LONGEST)
        height = torch.export.Dim('height', **limits)
        width = torch.export.Dim('width', **limits)
        dynamic = ({2: divisor * height, 3: divisor * width}, )
    return torch.export.export(features, (image, ), dynamic_shapes=dynamic)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, opset: int,
                outputs: int) -> None:
    # torch.onnx warns of operators if torchvision is not installed.
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            opset_version=opset,
            input_names=['image'],
            output_names=[f'level{i}' for i in range(outputs)],
            external_data=False,
            verbose=False)
    finally:
        logger.setLevel(level)


def difference(path: Path, features: nn.Module, size: tuple[int, int]) -> float:
    """Compare an exported file with torch on a random image.

    Returns:
        The largest difference, relative to the largest value of its map.

    Raises:
        RuntimeError: It is more than 1e-3, or the maps have other sizes.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(
        1, features.channels, *size, generator=generator)
    worst = 0.0
    got = _run(path, image)
    for level, want in enumerate(features(image)):
        if tuple(got[level].shape) != tuple(want.shape):
            raise RuntimeError(
                f'the exported map {level} of an image of {size} has the shape '
                f'{tuple(got[level].shape)}, in torch {tuple(want.shape)}')
        error = (got[level] - want).abs().max() / want.abs().max().clamp_min(
            torch.finfo(torch.float32).tiny)
        worst = max(worst, error.item())
    if not worst <= 1e-3:
        raise RuntimeError(f'the exported graph differs from torch by {worst:.1e} '
                           f'of the largest value, at an image of {size}')
    return worst


def _run(path: Path, image: Tensor) -> list[Tensor]:
    if path.suffix == '.pt2':
        return list(torch.export.load(str(path)).module()(image))
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    return [
        torch.from_numpy(x)
        for x in session.run(None, {'image': image.numpy()})
    ]


# --------------------------------------------------------------------- refusals


def refuse_compiled_operators(features: nn.Module) -> None:
    """Refuse compiled operators of mmcv, which torch and ONNX do not have.

    Raises:
        RuntimeError: The model has such operators.
    """
    found = {
        f'{type(m).__name__} ({name})': None
        for name, m in features.named_modules()
        if type(m).__module__.startswith('mmcv.ops.')
        and type(m).__module__ != 'mmcv.ops.wrappers'
    }
    if found:
        raise RuntimeError(
            'compiled operators of mmcv have no place in an exported graph: '
            f'{", ".join(list(found)[:4])}. Use a backbone and a pyramid '
            'without them, or a deployment tool that supports them')


def _check_environment() -> None:
    for name in ('FPT_ATTENTION', 'FPT_LAMBDA'):
        if os.environ.get(name) not in (None, '', 'eager'):
            raise ValueError(f"{name} must be unset or 'eager' for an export, "
                             f'got {os.environ[name]!r}')


@contextmanager
def _named_failures(features: nn.Module, divisor: int | None) -> Iterator[None]:
    """Convert errors to one that names the model's parts and suggests a fix."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # exporters raise many types
        names = ', '.join(type(part).__name__ for part in features.parts)
        lines = [line.strip() for line in str(error).splitlines()]
        # torch writes a heading, then a list of the problems
        found = [line.lstrip('- ') for line in lines if line.startswith('- ')]
        found += [line for line in lines if line] + [type(error).__name__]
        fix = (
            'Use a larger --shape if a map is one pixel high or wide there. '
            'If its code computes with the size of the image, export one fixed '
            'size (--fixed), or use another backbone or pyramid'
            if divisor is not None else
            'Its code cannot be captured: use another backbone or pyramid')
        raise RuntimeError(
            f'{names} cannot be exported: {found[0][:300]} {fix}') from error


def _size(name: str, size: Sequence[int],
          divisor: int | None) -> tuple[int, int]:
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(f'{name} must be height and width, got {size!r}')
    for side in size:
        check_positive_int(name, side)
        if divisor is None:
            continue
        check_positive_int('divisor', divisor)
        if side % divisor or not (SHORTEST * divisor <= side <=
                                  LONGEST * divisor):
            raise ValueError(
                f'{name} must be multiples of divisor={divisor}, from '
                f'{SHORTEST * divisor} to {LONGEST * divisor}, got {tuple(size)}')
    return tuple(size)


def _installed(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def _require(*packages: str) -> None:
    missing = [name for name in packages if not _installed(name)]
    if missing:
        raise ImportError(f'ONNX needs {" and ".join(missing)}: pip install '
                          f'{" ".join(missing)}, or write a .pt2 file')
