"""Find the detectors in a config, and the shapes of their necks' maps.

The shapes are not read from the config: backbone and neck are built and run, on the
meta device where possible. This works for any neck of any library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...openmmlab.models import describe, image_channels
from ..complexity.counting import meta_autocast

# Sides of square images to try; the first that runs is used. On the meta device
# they cost nothing.
_SIDES = {'meta': (256, 512, 1024), 'cpu': (128, 256, 512),
          'cuda': (128, 256, 512)}


class Refusal(ValueError):
    """The model cannot take the graft; the message says what is needed."""


class Unbuildable(RuntimeError):
    """The plain model itself does not build or run."""


@dataclass(frozen=True)
class Site:
    """A detector or segmentor in a config.

    Attributes:
        path: Keys from ``model`` to it.
        cfg: Its part of the config.
        scope: The registry scope in which it is built.
    """

    path: tuple[str | int, ...]
    cfg: Mapping
    scope: str | None

    @property
    def name(self) -> str:
        """Its path as in Python, for messages: ``model.detector``."""
        return 'model' + ''.join(
            f'[{key}]' if isinstance(key, int) else f'.{key}'
            for key in self.path)

    @property
    def has_neck(self) -> bool:
        """Whether it has a neck."""
        return bool(self.cfg.get('neck'))


def find_sites(model: Mapping, scope: str | None) -> list[Site]:
    """Find every dict with a backbone in a model's config, itself included.

    Args:
        model: The config's ``model``.
        scope: The config's ``default_scope``.
    """
    return list(_sites(model, (), scope))


def _sites(node: object, path: tuple, scope: str | None) -> Iterator[Site]:
    if isinstance(node, Mapping):
        scope = node.get('_scope_') or scope
        if isinstance(node.get('backbone'), Mapping):
            yield Site(path, node, scope)
        children = [(key, value) for key, value in node.items()
                    if key not in ('backbone', 'neck')]
    elif isinstance(node, (list, tuple)):
        children = list(enumerate(node))
    else:
        return
    for key, value in children:
        yield from _sites(value, (*path, key), scope)


@dataclass(frozen=True)
class Maps:
    """Shapes (B, C, H, W) of a neck's inputs and outputs.

    Attributes:
        inputs: Maps of the backbone.
        outputs: Maps of the neck; those of the backbone if there is no neck.
        declared_levels: Number of outputs made from backbone maps, if the neck
            declares it as FPN-like necks do.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    declared_levels: int | None = None

    @property
    def inferred_levels(self) -> int:
        """Number of leading outputs that are made from backbone maps.

        These have the size of a backbone map. If several backbone maps have the
        same size, as in a ViT, the number of backbone maps is used.
        """
        sizes = [shape[2:] for shape in self.inputs]
        count = 0
        if len(set(sizes)) == len(sizes):
            for shape in self.outputs:
                if shape[2:] not in sizes:
                    break
                count += 1
        return count or min(len(self.inputs), len(self.outputs))


def probe(site: Site) -> Maps:
    """Run backbone and neck of a site to find the shapes of their maps.

    If they run on no available device, the shapes that an FPN-like neck declares
    are used.

    Raises:
        Refusal: The output for the heads is not a tuple of maps.
        Unbuildable: Backbone or neck do not build or run.
    """
    errors = []
    neck = None
    devices = ['meta', 'cpu'] + ['cuda'] * torch.cuda.is_available()
    for device in devices:
        try:
            with torch.device(device):
                backbone = build_part(site, 'backbone')
                neck = build_part(site, 'neck') if site.has_neck else None
            for module in (backbone, neck):
                if module is not None:
                    module.eval()  # which may return None
        except Exception as error:  # third-party code may raise anything
            errors.append(error)
            continue
        for side in (*_SIDES[device], *_own_sides(site)):
            try:
                inputs, outputs = _run(backbone, neck, side, device)
            except Exception as error:
                errors.append(error)
                continue
            if neck is None:
                _check_training(site, backbone, side, device, outputs)
            return Maps(
                _shapes(inputs, site, 'backbone', strict=neck is None),
                _shapes(outputs, site, 'neck' if neck else 'backbone'),
                _declared_levels(neck))
    declared = _declared_maps(neck)
    if declared is not None:
        return declared
    raise Unbuildable(
        f'backbone and neck of {site.name} do not run by themselves, so the maps '
        f'of the neck are unknown: {describe(errors[-1])}') from errors[-1]


def _own_sides(site: Site) -> list[int]:
    """Return the image sides in the config; some models run only on these."""
    preprocessor = site.cfg.get('data_preprocessor') or {}
    sizes = (site.cfg['backbone'].get('img_size'), preprocessor.get('size'))
    sides = [size[0] if isinstance(size, (list, tuple)) and size else size
             for size in sizes]
    return [side for side in sides if isinstance(side, int) and side > 0]


def _declared_levels(neck: nn.Module | None) -> int | None:
    """Return how many backbone maps an FPN-like neck uses; None for others."""
    first = getattr(neck, 'start_level', None)
    end = getattr(neck, 'backbone_end_level', None)
    return None if first is None or end is None else end - first


def _declared_maps(neck: nn.Module | None) -> Maps | None:
    """Return the maps that an FPN-like neck declares, each half as large."""
    levels = _declared_levels(neck)
    inputs, channels, count = (getattr(neck, name, None) for name in
                               ('in_channels', 'out_channels', 'num_outs'))
    if levels is None or not isinstance(channels, int) \
            or not isinstance(count, int) or not isinstance(inputs, list):
        return None

    def shapes(widths: list[int]) -> tuple[tuple[int, ...], ...]:
        return tuple((1, width, *[2**(len(widths) - i)] * 2)
                     for i, width in enumerate(widths))

    return Maps(shapes(inputs), shapes([channels] * count), levels)


def build_part(site: Site, part: str) -> nn.Module:
    """Build the backbone or the neck of a site."""
    with MODELS.switch_scope_and_registry(site.scope) as registry:
        return registry.build(copied(site.cfg[part]))


def copied(cfg: object) -> object:
    """Copy nested configs, because some constructors remove keys."""
    if isinstance(cfg, Mapping):
        return type(cfg)({key: copied(value) for key, value in cfg.items()})
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(map(copied, cfg))
    return cfg


def _check_training(site: Site, backbone: nn.Module, side: int, device: str,
                    tested: object) -> None:
    """Refuse a backbone that returns more maps in training."""
    backbone.train()
    try:
        trained, _ = _run(backbone, None, side, device, batch=2)
    except Exception:  # for example a norm that needs more pixels
        return
    in_testing, in_training = (
        len(maps) if isinstance(maps, (list, tuple)) else None
        for maps in (tested, trained))
    if in_testing != in_training:
        raise Refusal(
            f'{site.name} has a backbone ({type_name(site.cfg["backbone"])}) '
            f'that returns {in_testing or "no tuple of"} maps in testing and '
            f'{in_training or "no tuple of"} in training; a neck needs the same')


@torch.no_grad()
def _run(backbone: nn.Module, neck: nn.Module | None, side: int, device: str,
         batch: int = 1) -> tuple[object, object]:
    image = torch.zeros(batch, image_channels(backbone), side, side,
                        device=device)
    with meta_autocast():
        inputs = backbone(image)
        return inputs, inputs if neck is None else neck(inputs)


def _shapes(maps: object, site: Site, part: str,
            strict: bool = True) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a sequence of maps; () for other types if not strict."""
    if isinstance(maps, Sequence) and all(
            isinstance(x, Tensor) and x.dim() == 4 for x in maps):
        return tuple(tuple(x.shape) for x in maps)
    if not strict:
        return ()
    kind = type(maps).__name__
    if isinstance(maps, Sequence):
        kind += ' of ' + ', '.join(
            str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__
            for x in maps)
    elif isinstance(maps, Tensor):
        kind += f' {tuple(maps.shape)}'
    raise Refusal(
        f'{site.name} has a {part} ({type_name(site.cfg[part])}) that returns '
        f'a {kind}; a transformer needs a tuple of maps (B, C, H, W)')


def type_name(cfg: Mapping | Sequence) -> str:
    """Return the type in a config, or the types in a list of configs."""
    if not isinstance(cfg, Mapping):
        return '[' + ', '.join(map(type_name, cfg)) + ']'
    kind = cfg.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', '?')
