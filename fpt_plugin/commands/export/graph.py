"""Backbone and neck of a detector or segmentor as one graph for deployment.

Heads, anchors and NMS are left to the deployment tools of the libraries. The graph
is that of the eager twins (functional/), of plain operators alone. ONNX and
``.pt2`` files take any height and width that are multiples of ``divisor``: the
strides between the levels are then the same at every size, and are constants.
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

OPSET = 18  # the first one that torch's exporter writes without converting
FORMATS = ('.onnx', '.pt2')
# Shortest sides of an exported graph, in multiples of the divisor: torch takes
# sides of 0 and 1 for constants.
SHORTEST = 2
LONGEST = 512


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        out: The file.
        opset: Of ONNX; None for ``.pt2``.
        divisor: What height and width must be multiples of; None: they are
            those of ``shape``.
        shape: Height and width it was captured at.
        outputs: Channels of each map.
        differences: By height and width, the largest difference to torch,
            relative to the largest number of its map; empty where there was
            nothing to run the file with.
    """

    out: Path
    opset: int | None
    divisor: int | None
    shape: tuple[int, int]
    outputs: tuple[int, ...]
    differences: dict[tuple[int, int], float]


class Features(nn.Module):
    """Backbone and neck alone: image in, maps out.

    Args:
        model: A detector or segmentor, which is copied.

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
            # mmdet's MobileNetV2.eval() returns None: nothing is chained
            part.eval()
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image (B, C, H, W), normalised, to the maps of the neck."""
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
        shape: Height and width of the image that the graph is captured at,
            multiples of ``divisor``.
        divisor: What height and width of later images are multiples of; None:
            they are ``shape``.
        opset: Version of ONNX's operators, at least 18.
        checks: Other heights and widths at which the file must agree with
            torch; ``shape`` always is one. Without any, one is chosen.
        force: Whether to replace ``out``.

    Returns:
        What was written and how far it is from torch.

    Raises:
        FileExistsError: ``out`` is there already.
        OSError: It cannot be written.
        RuntimeError: The model cannot be exported, the file does not agree
            with torch, or torch is too old; the message names what and why.
        TypeError: A number is not an int.
        ValueError: An argument is out of range.
        ImportError: ONNX is not installed.
    """
    out = Path(out)
    sizes = [_size('shape', shape, divisor)]
    sizes += [_size('checks', size, divisor) for size in checks]
    if divisor is not None and not checks:
        # torch may find out only at another size that a side became constant
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
                # The file takes its name only after it has been run.
                differences = {
                    size: difference(temporary, features, size)
                    for size in dict.fromkeys(sizes)
                } if out.suffix == '.pt2' or _there('onnxruntime') else {}
    return Export(
        out=out,
        opset=opset if out.suffix == '.onnx' else None,
        divisor=divisor,
        shape=sizes[0],
        outputs=tuple(x.shape[1] for x in maps),
        differences=differences)


# ---------------------------------------------------------------- what is fixed


def fix_strides(features: nn.Module, image: Tensor) -> None:
    """Make constants of what FPT computes from the sizes of its maps.

    The strides of key pooling and of the Rendering Transformers are numbers of
    the graph, not of its inputs. Where all levels halve exactly they are the
    same at every size.

    Args:
        features: Changed in place.
        image: One to run it with.
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
    # It tells of operators of torchvision that are not there.
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
    """How far a file is from torch on a random image of that size.

    Returns:
        The largest difference, relative to the largest number of its map.

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
                           f'of the largest number, at an image of {size}')
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
    """Refuse operators of mmcv that are no operators of torch or ONNX.

    Raises:
        RuntimeError: There are such.
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
            f'{", ".join(list(found)[:4])}. Take a backbone and a pyramid '
            'without them, or a deployment tool that brings its own')


def _check_environment() -> None:
    for name in ('FPT_ATTENTION', 'FPT_LAMBDA'):
        if os.environ.get(name) not in (None, '', 'eager'):
            raise ValueError(f'{name} must not be set for an export, which takes '
                             f'the eager operators, got {os.environ[name]!r}')


@contextmanager
def _named_failures(features: nn.Module, divisor: int | None) -> Iterator[None]:
    """Say what could not be exported and what may help."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # what exporters raise is no one type
        names = ', '.join(type(part).__name__ for part in features.parts)
        lines = [line.strip() for line in str(error).splitlines()]
        # torch lists what it found below a headline
        found = [line.lstrip('- ') for line in lines if line.startswith('- ')]
        found += [line for line in lines if line] + [type(error).__name__]
        cure = (
            'Capture it at a larger --shape, if a map is one pixel high or wide '
            'there; or its code may compute with the size of the image: export '
            'one fixed size (--fixed), or take another backbone or pyramid'
            if divisor is not None else
            'Its code is not for a graph: take another backbone or pyramid')
        raise RuntimeError(
            f'{names} cannot be exported: {found[0][:300]} {cure}') from error


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


def _there(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def _require(*packages: str) -> None:
    missing = [name for name in packages if not _there(name)]
    if missing:
        raise ImportError(f'ONNX needs {" and ".join(missing)}: pip install '
                          f'{" ".join(missing)}, or write a .pt2 file')
