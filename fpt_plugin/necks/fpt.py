"""The Feature Pyramid Transformer as a neck around any pyramid.

Feature Pyramid Transformer, ECCV 2020: https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

from math import lcm

import torch
from mmengine.model import BaseModule, ModuleDict, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional.cpu_workarounds import channels_last
from ..layers.checks import (
    check_flags,
    check_levels,
    check_positive_int,
    refusing,
)
from ..openmmlab.registry import register
from ..openmmlab.versions import check_versions
from .branches import (
    branch_arguments,
    build_branch,
    default_num_mixtures,
    level_pairs,
    pooling_strides,
    resolve_key_strides,
    warn_of_many_keys,
)
from .checkpoints import adopt_pyramid_keys, check_own_keys
from .fusion import FUSIONS
from .presets import BRANCHES, PRESET, find_preset, resolve_first_levels
from .wrapped import (
    build_pyramid,
    check_inputs,
    check_pyramid,
    resolve_num_levels,
)


@register(MODELS)
class FPT(BaseModule):
    """Feature Pyramid Transformer around a pyramid of any library.

    To add it to a config with an FPN, write
    ``model = dict(neck=dict(type='FPT'))``: mmengine merges this into the FPN's
    dict, and FPT passes the FPN's arguments to the wrapped pyramid. Each level
    gets a Self-Transformer (ST) of its own map, Grounding Transformers (GT)
    from coarser levels and Rendering Transformers (RT) from finer levels. All
    read the original pyramid. They are fused in the order [X,] ST, GT, RT with
    ascending source levels.

    With ``fusion='residual'`` the last convolution of each level starts at
    zero: before the first training step the outputs equal those of the wrapped
    pyramid bit for bit. Checkpoints trained with the plain pyramid load.
    Outputs depend on the padded size, because attention includes the padding.

    Args:
        in_channels: Channels of each backbone map; with ``pyramid=None`` one
            number for all maps.
        out_channels: Channels C of every output map.
        num_outs: Number of output maps, an argument of the pyramid.
        pyramid: Config of the neck to wrap, whose arguments override the outer
            ones; a list of configs, which receives no outer arguments; or
            None if the inputs already are a pyramid. ``'preset'``: as in the
            preset.
        self_transformer: Config of the ST branch; None: no ST; ``'preset'``:
            as in the preset.
        grounding_transformer: Config of the GT branch, likewise.
        rendering_transformer: Config of the RT branch, likewise.
        preset: Sets the arguments that a config does not set.

            - ``'default'``, None: E = C // 4. With four or more levels the
              finest has ST only; the others have all branches, among
              themselves.
            - ``'light'``: the Self-Transformer only, E = C // 8.
            - ``'full'``: E = C // 2, all branches; the default of 0.1.0.
            - ``'paper'``: BottomUpPyramid, E = C, every key, fusion
              ``'concat'``, which changes a trained detector from the start.

            In the first two E is at least 32, or C if C is smaller.
        num_levels: Number of the pyramid's maps to transform; the others pass
            through. None: the maps made from backbone maps, known for FPN-like
            pyramids; other pyramids need the number.
        first_level: The first level, counted from the finest, that has
            branches or is read by them: an int, or a dict with an int for each
            branch, such as ``dict(grounding_transformer=1)``. None: as in the
            preset.
        embed_channels: Channels E of q, k and v; None: as in the preset,
            rounded down to a multiple of the number of mixture parts.
        key_strides: Average pooling of each level before keys and values, an
            int or one int per level; 1 is exact. None: 1 in the preset
            ``'paper'``; in the others each level is pooled to the grid of the
            coarsest transformed level: (8, 4, 2, 1) for four levels of a usual
            pyramid, 1 for maps of equal size. That grid grows with the image;
            more than 10,000 keys give one warning.
        fusion: ``'residual'``, X + conv3x3(conv1x1(branches)), or
            ``'concat'``, the paper's conv3x3([X, branches]). None: as in the
            preset.
        fusion_norm_cfg: Norm after the 1x1 convolution of the residual fusion
            or after the 3x3 convolution of the other; None: none.
        drop_block: Config of a module applied to the branches of each level in
            training, such as ``dict(type='mmdet.DropBlock', drop_prob=0.1,
            block_size=5)``; skipped on maps smaller than its block.
        checkpoint_branches: Recompute the branches in the backward pass to
            save memory.
        freeze_pyramid: Freeze the wrapped pyramid: no gradients for its
            parameters, its norms in evaluation mode. Gradients still reach
            the backbone. Not allowed with ``pyramid=None``.
        **pyramid_args: All other arguments, including ``norm_cfg`` and
            ``init_cfg``, are passed to the pyramid. With ``pyramid=None`` or a
            list only ``init_cfg`` is allowed; it is used for FPT itself.

    Raises:
        TypeError: An argument has the wrong type, or the pyramid rejects it.
        ValueError: An argument is out of range or does not fit another one, or
            a type is not registered.
        ImportError: The installed OpenMMLab versions do not fit.

    Example:
        >>> import torch
        >>> maps = [torch.rand(1, c, s, s)
        ...         for c, s in [(8, 32), (16, 16), (32, 8)]]
        >>> neck = FPT([8, 16, 32], 16, num_outs=4,
        ...            pyramid=dict(type='BottomUpPyramid'))
        >>> [tuple(x.shape) for x in neck(maps)]
        [(1, 16, 32, 32), (1, 16, 16, 16), (1, 16, 8, 8), (1, 16, 4, 4)]
    """

    # Children of this module. Every other key of a checkpoint belongs to the
    # wrapped pyramid.
    OWN_CHILDREN = ('pyramid', 'self_transformers', 'grounding_transformers',
                    'rendering_transformers', 'fusions', 'drop_blocks')

    fixed_strides: tuple[int, ...] | None = None  # set by fix_strides

    def __init__(
            self,
            in_channels: list[int] | int,
            out_channels: int,
            num_outs: int | None = None,
            pyramid: dict | list | str | None = PRESET,
            self_transformer: dict | str | None = PRESET,
            grounding_transformer: dict | str | None = PRESET,
            rendering_transformer: dict | str | None = PRESET,
            preset: str | None = None,
            num_levels: int | None = None,
            first_level: int | dict | None = None,
            embed_channels: int | None = None,
            key_strides: int | list[int] | tuple[int, ...] | None = None,
            fusion: str | None = None,
            fusion_norm_cfg: dict | None = None,
            drop_block: dict | None = None,
            checkpoint_branches: bool = False,
            freeze_pyramid: bool = False,
            **pyramid_args) -> None:
        check_versions()
        chosen = find_preset(preset)
        pyramid = chosen.resolve('pyramid', pyramid)
        own_init_cfg = None
        if pyramid is None or isinstance(pyramid, (list, tuple)):
            own_init_cfg = pyramid_args.pop('init_cfg', None)
            if pyramid_args:
                raise TypeError(
                    'a pyramid that is a list or None receives no outer '
                    f'arguments, got {sorted(pyramid_args)}; write them into '
                    'the list, and add _delete_=True if a base config sets them')
        super().__init__(init_cfg=own_init_cfg)
        fusion = chosen.fusion if fusion is None else fusion
        if fusion not in FUSIONS:
            raise ValueError(
                f'fusion must be one of {tuple(FUSIONS)}, got {fusion!r}')
        check_flags(
            checkpoint_branches=checkpoint_branches,
            freeze_pyramid=freeze_pyramid)
        check_positive_int('out_channels', out_channels)
        if num_outs is not None:
            check_levels('num_outs', num_outs)
        self.preset = preset or 'default'
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.checkpoint_branches = checkpoint_branches
        self.freeze_pyramid = freeze_pyramid

        if freeze_pyramid and pyramid is None:
            raise ValueError(
                'freeze_pyramid=True needs a wrapped pyramid to freeze, got '
                'pyramid=None: wrap the necks, or use TrainGraftOnlyHook')
        self.pyramid = self._build_pyramid(pyramid, pyramid_args)
        # The pyramid's own config may have overridden out_channels.
        check_positive_int('out_channels', self.out_channels)
        self.num_levels = resolve_num_levels(num_levels, self.pyramid,
                                             self.num_outs)
        self.first_levels = resolve_first_levels(
            first_level, self.num_levels, chosen,
            one_size=getattr(self.pyramid, 'one_size', False))
        self.key_strides = resolve_key_strides(
            self.num_levels,
            chosen.key_strides if key_strides is None else key_strides)
        given = (self_transformer, grounding_transformer, rendering_transformer)
        branch_cfgs = {name: chosen.resolve(name, cfg)
                       for name, cfg in zip(BRANCHES, given)}
        if embed_channels is None:
            embed_channels = chosen.embed_channels(
                self.out_channels,
                lcm(*(default_num_mixtures(name, cfg)
                      for name, cfg in branch_cfgs.items())))
        self.embed_channels = check_positive_int('embed_channels',
                                                 embed_channels)
        self._build_branches(branch_cfgs)
        self._warn_of_many_keys = bool(self._pooled_branches)
        with refusing('fusion_norm_cfg', fusion_norm_cfg):
            self._build_fusions(fusion, fusion_norm_cfg)
        with refusing('drop_block', drop_block):
            self.drop_blocks = nn.ModuleList(
                MODELS.build(dict(drop_block)) for _ in range(self.num_levels)
            ) if drop_block is not None else None
        self._freeze()

    # ------------------------------------------------------------ construction

    def _build_pyramid(self, pyramid: dict | list | None,
                       outer: dict) -> nn.Module | None:
        """Route FPN's arguments to the wrapped neck and build it."""
        if pyramid is None:
            channels = self.in_channels
            if isinstance(channels, (list, tuple)):
                if len(set(channels)) != 1:
                    raise ValueError(
                        'pyramid=None needs one number of channels for all '
                        f'maps, got in_channels={channels}')
                channels = channels[0]
            if check_positive_int('in_channels',
                                  channels) != self.out_channels:
                raise ValueError(
                    'pyramid=None needs in_channels equal to out_channels, got '
                    f'in_channels={channels} and '
                    f'out_channels={self.out_channels}')
            return None
        if not isinstance(pyramid, dict):
            return build_pyramid(pyramid)
        if isinstance(self.in_channels, tuple):
            self.in_channels = list(self.in_channels)  # FPN asserts a list
        args = dict(outer)
        args.update(pyramid)
        if self.num_outs is not None:
            args.setdefault('num_outs', self.num_outs)
        # Some necks have other names for these arguments.
        optional = dict(
            in_channels=self.in_channels, out_channels=self.out_channels)
        self.in_channels = args.get('in_channels', self.in_channels)
        self.out_channels = args.get('out_channels', self.out_channels)
        self.num_outs = args.get('num_outs')
        if self.num_outs is not None:
            check_levels('num_outs', self.num_outs)
        return build_pyramid(args, optional)

    def _build_branches(self, cfgs: dict[str, dict | None]) -> None:
        """Build a layer per (level, source level), named ``level_source``."""
        # Branches whose forward takes the key stride computed from the maps.
        self._pooled_branches: set[str] = set()
        for name, cfg in cfgs.items():
            # mmengine's containers call init_weights of their modules.
            layers = ModuleDict()
            pairs = level_pairs(name, self.first_levels[name], self.num_levels)
            for level, source in pairs if cfg is not None else ():
                layers[f'{level}_{source}'], pooled = build_branch(
                    name, cfg, self.out_channels, self.embed_channels,
                    self.key_strides and self.key_strides[source])
                if pooled:
                    self._pooled_branches.add(f'{name}s')
            setattr(self, f'{name}s', layers)

    def _build_fusions(self, fusion: str, norm_cfg: dict | None) -> None:
        self.fusions = ModuleList()
        for level in range(self.num_levels):
            width = sum(
                getattr(layer, 'embed_channels', self.embed_channels)
                for _, layer, _ in self._branches(level))
            # A residual level without branches returns the pyramid's map.
            self.fusions.append(
                nn.Identity() if width == 0 and fusion == 'residual' else
                FUSIONS[fusion](self.out_channels, width, self.embed_channels,
                                norm_cfg))

    def _branches(self, level: int) -> list[tuple[int, nn.Module, bool]]:
        """List (source level, layer, takes a key stride) in fusion order."""
        return [(source, branches[f'{level}_{source}'],
                 kind in self._pooled_branches)
                for kind in self.OWN_CHILDREN[1:4]
                for branches in [getattr(self, kind)]
                for source in range(self.num_levels)
                if f'{level}_{source}' in branches]

    # ------------------------------------------------------------------ freeze

    def _freeze(self) -> None:
        if self.freeze_pyramid and self.pyramid is not None:
            self.pyramid.requires_grad_(False)
            self.pyramid.eval()

    def train(self, mode: bool = True) -> FPT:
        """Set the training mode; a frozen pyramid stays in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    # ------------------------------------------------------------- checkpoints

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Load keys of the plain pyramid; reject branches of other presets."""
        check_own_keys(state_dict, prefix, self)
        if self.pyramid is not None:
            adopt_pyramid_keys(state_dict, prefix, self.OWN_CHILDREN,
                               self.pyramid)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ----------------------------------------------------------------- forward

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Transform the pyramid of the inputs.

        Args:
            inputs: Backbone maps (B, in_channels[i], H_i, W_i), fine to
                coarse; with ``pyramid=None`` the pyramid itself.

        Returns:
            Maps (B, C, H_i, W_i). The first ``num_levels`` are transformed;
            the others are the pyramid's.

        Raises:
            TypeError: An input is not a floating point tensor.
            ValueError: The inputs do not fit ``in_channels``, or the pyramid
                returns maps that FPT cannot transform.
        """
        maps, sources, strides = self._sources(inputs)
        outs = [
            self._transform(level, maps[level], sources, strides)
            for level in range(self.num_levels)
        ]
        return tuple(outs) + maps[self.num_levels:]

    def branch_inputs(
        self, inputs: tuple[Tensor, ...]
    ) -> list[tuple[int, int, nn.Module, tuple, dict]]:
        """Return the arguments of each branch's call without running it.

        Args:
            inputs: As in the forward pass.

        Returns:
            (level, source level, layer, arguments, keyword arguments) of each
            branch, level by level.
        """
        _, sources, strides = self._sources(inputs)
        return [(level, source, layer,
                 *branch_arguments(level, source, sources,
                                   strides if pooled else None))
                for level in range(self.num_levels)
                for source, layer, pooled in self._branches(level)]

    def _sources(
        self, inputs: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], list[Tensor], tuple[int, ...] | None]:
        """Return the pyramid, the maps the branches read, and key strides."""
        maps = self._pyramid_maps(inputs)
        check_pyramid(
            'inputs' if self.pyramid is None else 'pyramid output', maps,
            self.num_levels, self.out_channels)
        sources = [channels_last(x) for x in maps[:self.num_levels]]
        return maps, sources, self.pooling_strides(maps)

    def pooling_strides(
            self, maps: tuple[Tensor, ...]) -> tuple[int, ...] | None:
        """Return key strides to the coarsest grid; None if they are fixed."""
        if self.key_strides is not None:
            return None
        if self._warn_of_many_keys \
                and warn_of_many_keys(maps[self.num_levels - 1]):
            self._warn_of_many_keys = False
        return self.fixed_strides or pooling_strides(maps[:self.num_levels])

    def fix_strides(self, inputs: tuple[Tensor, ...]) -> None:
        """Use the key strides of these inputs for all later inputs.

        A captured graph holds them as constants. They are not saved in the
        state dict.
        """
        self.fixed_strides = None
        training = self.training
        self.eval()  # keep the running statistics of the pyramid's norms
        with torch.no_grad():
            self.fixed_strides = self.pooling_strides(
                self._pyramid_maps(inputs))
        self.train(training)

    def _pyramid_maps(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not isinstance(inputs, (list, tuple)):
            raise TypeError('inputs must be a list or tuple of maps, got '
                            f'{type(inputs).__name__}')
        if self.pyramid is None:
            return tuple(inputs)
        try:
            return tuple(self.pyramid(inputs))
        except (AssertionError, IndexError, RuntimeError, TypeError,
                ValueError):
            check_inputs(self.pyramid, self.in_channels, inputs)
            raise

    def _transform(self, level: int, x: Tensor, maps: list[Tensor],
                   strides: tuple[int, ...] | None) -> Tensor:
        """Compute one output level in the memory format of ``x``."""
        branches = [  # (B, E, H, W) each
            self._run(layer,
                      *branch_arguments(level, source, maps,
                                        strides if pooled else None))
            for source, layer, pooled in self._branches(level)
        ]
        fusion = self.fusions[level]
        if not branches:
            out = x if isinstance(fusion, nn.Identity) else fusion(x, None)
        else:
            joined = torch.cat(branches, dim=1)  # (B, sum of E, H, W)
            out = fusion(x, self._drop(level, joined))  # (B, C, H, W)
        # Keep the memory format for the heads: a convolution in another
        # format may round differently.
        return out.contiguous() if x.is_contiguous() else out

    def _run(self, layer: nn.Module, args: tuple, kwargs: dict) -> Tensor:
        """Run one branch, with activation checkpointing if it is on."""
        if self.checkpoint_branches and self.training \
                and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False, **kwargs)
        return layer(*args, **kwargs)

    def _drop(self, level: int, branches: Tensor) -> Tensor:
        if self.drop_blocks is None:
            return branches
        drop = self.drop_blocks[level]
        # DropBlock divides by the number of positions of its block.
        if min(branches.shape[2:]) < getattr(drop, 'block_size', 1):
            return branches
        return drop(branches)
