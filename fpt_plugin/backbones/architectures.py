"""The LambdaResNets of the paper and of public weights, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# (stage, block), both counted from 0.
Place = tuple[int, int]


@dataclass(frozen=True)
class Architecture:
    """What a depth, or the name of a preset, stands for.

    Attributes:
        blocks: Blocks of each stage.
        lambda_blocks: The blocks whose 3x3 convolution is a lambda layer.
        context_sizes: Side of each lambda layer's window; 0 is what all places
            have that are not named.
        stem: Channels and strides of 3x3 convolutions; None: one of 7x7.
        stem_pool: Whether a 3x3 max pooling of stride 2 follows the stem.
        average_shortcut: Whether a shortcut of stride 2 averages 2x2 pixels,
            as in ResNet-D, where others skip three of them.
        average_lambda: The pooling after a lambda layer of stride 2: ``'3x3'``,
            ``'3x3-zeros'``, which counts the zeros around the map, or
            ``'2x2'``.
        content_bias: Whether the content lambdas have a bias.
        act_cfg: Activation.
    """

    blocks: tuple[int, ...]
    lambda_blocks: frozenset[Place]
    context_sizes: Mapping[Place | int, int] = field(
        default_factory=lambda: {0: 23})
    stem: tuple[tuple[int, int], ...] | None = ((32, 2), (32, 1), (64, 1),
                                                (64, 2))
    stem_pool: bool = False
    average_shortcut: bool = True
    average_lambda: str = '3x3'
    content_bias: bool = False
    act_cfg: Mapping = field(
        default_factory=lambda: dict(type='ReLU', inplace=True))

    def context_size(self, place: Place) -> int:
        """Side of the window of the lambda layer at a place."""
        return self.context_sizes.get(place, self.context_sizes[0])


def all_blocks(blocks: Iterable[int]) -> frozenset[Place]:
    """Every place of stages with so many blocks."""
    return frozenset((stage, block) for stage, count in enumerate(blocks)
                     for block in range(count))


def _hybrid(blocks: tuple[int, ...], c4: Iterable[int]) -> Architecture:
    """Lambda layers in all of C5 and in the given blocks of C4."""
    places = {(2, block) for block in c4}
    places.update((3, block) for block in range(blocks[3]))
    return Architecture(blocks, frozenset(places))


def _timm(blocks: tuple[int, ...], places: Iterable[Place],
          **kwargs) -> Architecture:
    """A net whose ImageNet weights timm publishes."""
    return Architecture(
        blocks,
        frozenset(places),
        stem=((24, 2), (32, 1), (64, 1)),
        stem_pool=True,
        average_shortcut=False,
        average_lambda='2x2',
        **kwargs)


# LambdaNetworks, Table 15 (hybrids); timm's lambda_resnet26t,
# lambda_resnet26rpt_256 and lambda_resnet50ts, whose global embeddings at 256
# pixels are windows here; d-li14's LambdaResNet-50.
ARCHITECTURES: dict[int | str, Architecture] = {
    50: _hybrid((3, 4, 6, 3), [3]),
    101: _hybrid((3, 4, 23, 3), range(6, 19, 6)),
    152: _hybrid((3, 8, 36, 3), range(5, 31, 5)),
    200: _hybrid((3, 24, 36, 3), range(5, 31, 5)),
    270: _hybrid((4, 29, 53, 4), range(8, 49, 8)),
    350: _hybrid((4, 36, 72, 4), range(10, 61, 10)),
    420: _hybrid((4, 44, 87, 4), range(10, 81, 10)),
    '26t': _timm((2, 2, 2, 2), [(2, 1), (3, 0), (3, 1)],
                 context_sizes={0: 9}, content_bias=True),
    '26rpt': _timm((2, 2, 2, 2), [(2, 1), (3, 0), (3, 1)],
                   context_sizes={0: 31, (3, 1): 15}),
    '50ts': _timm((3, 4, 6, 3), [(1, 3), (2, 1), (2, 3), (2, 5), (3, 1)],
                  context_sizes={0: 9}, content_bias=True,
                  act_cfg=dict(type='SiLU')),
    'd-li14-50': Architecture(
        (3, 4, 6, 3), all_blocks((3, 4, 6, 3)), stem=None, stem_pool=True,
        average_shortcut=False, average_lambda='3x3-zeros', content_bias=True),
}


def architecture(depth: int | str) -> Architecture:
    """Look an architecture up.

    Raises:
        ValueError: The depth is unknown.
    """
    if isinstance(depth, bool) or depth not in ARCHITECTURES:
        raise ValueError(
            f'depth must be one of {tuple(ARCHITECTURES)}, got {depth!r}')
    return ARCHITECTURES[depth]
