"""Table of the LambdaResNets of the paper and of public weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# (stage, block), both counted from 0.
BlockIndex = tuple[int, int]


@dataclass(frozen=True)
class Architecture:
    """Architecture of a depth or a named preset.

    Attributes:
        blocks: Number of blocks of each stage.
        lambda_blocks: Blocks that have a lambda layer instead of the 3x3
            convolution.
        context_sizes: Side of each lambda layer's window; key 0 is the default.
        stem: Channels and strides of 3x3 convolutions; None: one of 7x7.
        stem_pool: Whether a 3x3 max pooling of stride 2 follows the stem.
        average_shortcut: Whether a shortcut of stride 2 averages 2x2 pixels, as
            in ResNet-D, instead of taking every second pixel.
        average_lambda: The pooling after a lambda layer of stride 2: ``'3x3'``,
            ``'3x3-zeros'`` (counts the zero padding) or ``'2x2'``.
        content_bias: Whether the content lambdas have a bias.
        act_cfg: Activation.
    """

    blocks: tuple[int, ...]
    lambda_blocks: frozenset[BlockIndex]
    context_sizes: Mapping[BlockIndex | int, int] = field(
        default_factory=lambda: {0: 23})
    stem: tuple[tuple[int, int], ...] | None = ((32, 2), (32, 1), (64, 1),
                                                (64, 2))
    stem_pool: bool = False
    average_shortcut: bool = True
    average_lambda: str = '3x3'
    content_bias: bool = False
    act_cfg: Mapping = field(
        default_factory=lambda: dict(type='ReLU', inplace=True))

    def context_size(self, block: BlockIndex) -> int:
        """Return the side of the window of a block's lambda layer."""
        return self.context_sizes.get(block, self.context_sizes[0])


def all_blocks(blocks: Iterable[int]) -> frozenset[BlockIndex]:
    """Return (stage, block) of every block, given their number per stage."""
    return frozenset((stage, block) for stage, count in enumerate(blocks)
                     for block in range(count))


def _hybrid(blocks: tuple[int, ...], c4: Iterable[int]) -> Architecture:
    """Describe a net with lambda layers in all of C5 and some blocks of C4."""
    lambda_blocks = {(2, block) for block in c4}
    lambda_blocks.update((3, block) for block in range(blocks[3]))
    return Architecture(blocks, frozenset(lambda_blocks))


def _timm(blocks: tuple[int, ...], lambda_blocks: Iterable[BlockIndex],
          **kwargs) -> Architecture:
    """Describe a net whose ImageNet weights timm publishes."""
    return Architecture(
        blocks,
        frozenset(lambda_blocks),
        stem=((24, 2), (32, 1), (64, 1)),
        stem_pool=True,
        average_shortcut=False,
        average_lambda='2x2',
        **kwargs)


# Hybrids: LambdaNetworks, Table 15. Presets: timm's lambda_resnet26t,
# lambda_resnet26rpt_256 and lambda_resnet50ts (their global embeddings for 256
# pixels are windows here), and d-li14's LambdaResNet-50.
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
    """Return the architecture of a depth or preset.

    Raises:
        ValueError: The depth is unknown.
    """
    if isinstance(depth, bool) or depth not in ARCHITECTURES:
        raise ValueError(
            f'depth must be one of {tuple(ARCHITECTURES)}, got {depth!r}')
    return ARCHITECTURES[depth]
