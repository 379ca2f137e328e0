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

    Over an FPN config ``model = dict(neck=dict(type='FPT'))`` is the whole
    change: mmengine merges it into the FPN's dict, and what is not FPT's goes
    to the pyramid. A level then gets, from the original pyramid, a
    Self-Transformer of its own map, Grounding Transformers from coarser levels
    and Rendering Transformers from finer ones, fused in the order [X,] ST, GT,
    RT with ascending source levels.

    With ``fusion='residual'`` the last convolution of each level starts at
    zero: before the first training step the outputs are those of the wrapped
    pyramid bit for bit. Checkpoints trained with the plain pyramid load.
    Outputs depend on the padded size: attention runs over batch padding too.

    Args:
        in_channels: Channels of each backbone map; with ``pyramid=None`` the
            one number of channels of all maps.
        out_channels: Channels C of every output map.
        num_outs: Number of output maps, the pyramid's argument.
        pyramid: Config of the neck to wrap, whose arguments win over the outer
            ones; a list of configs, which receives no outer arguments; or
            None: the inputs are a pyramid already. ``'preset'``: the preset's.
        self_transformer: Config of the ST branch; None leaves it out,
            ``'preset'`` takes the preset's.
        grounding_transformer: Config of the GT branch, likewise.
        rendering_transformer: Config of the RT branch, likewise.
        preset: What the arguments are that a config does not set.

            - ``'default'``, None: E = C // 4. Of four or more levels the
              finest gets ST only, the others all branches among themselves.
            - ``'light'``: the Self-Transformer only, E = C // 8.
            - ``'full'``: E = C // 2, all branches; the default of 0.1.0.
            - ``'paper'``: BottomUpPyramid, E = C, every key, fusion
              ``'concat'``, which changes a trained detector at once.

            E is at least 32 in the first two, or C where C is less.
        num_levels: How many of the pyramid's maps are transformed; the others
            pass through. None: those made from backbone maps, which FPN-like
            pyramids tell; others need the number.
        first_level: The first level that gets branches, counted from the
            finest, which branches of other levels do not read either: an int,
            or a dict of one for each branch, such as
            ``dict(grounding_transformer=1)``. None: the preset's.
        embed_channels: Channels E of q, k and v; None: the preset's, rounded
            down to a multiple of the mixtures' parts.
        key_strides: Average pooling of each level before keys and values, an
            int or one a level; 1 is exact. None: 1 in the preset ``'paper'``;
            in the others every level is pooled to the grid of the coarsest
            transformed one: (8, 4, 2, 1) for four levels
            of a usual pyramid, 1 for maps of equal size. That grid grows with
            the image; more than 10,000 keys are warned of once.
        fusion: ``'residual'``, X + conv3x3(conv1x1(branches)), or
            ``'concat'``, the paper's conv3x3([X, branches]). None: the
            preset's.
        fusion_norm_cfg: Norm after the 1x1 convolution of the residual fusion
            or after the 3x3 convolution of the other; None: none.
        drop_block: Config of a module applied to the branches of each level
            while training, such as ``dict(type='mmdet.DropBlock',
            drop_prob=0.1, block_size=5)``, where its block fits the map.
        checkpoint_branches: Recompute the branches in the backward pass to
            save memory.
        freeze_pyramid: Keep the wrapped pyramid as it is: no gradients for its
            parameters, its norms in evaluation mode. Gradients still reach
            the backbone. With ``pyramid=None`` there is none to freeze.
        **pyramid_args: Everything else, ``norm_cfg`` and ``init_cfg``
            included, is the pyramid's. With ``pyramid=None`` or a list only
            ``init_cfg`` is allowed and is FPT's own.

    Raises:
        TypeError: An argument has the wrong type, or the pyramid refuses it.
        ValueError: An argument is out of range or does not fit another one, or
            no registry knows a type.
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

    # Children of this module; every other key of a checkpoint is taken for
    # the wrapped pyramid's.
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
        pyramid = chosen.unless_given('pyramid', pyramid)
        own_init_cfg = None
        if pyramid is None or isinstance(pyramid, (list, tuple)):
            own_init_cfg = pyramid_args.pop('init_cfg', None)
            if pyramid_args:
                raise TypeError(
                    'a pyramid that is a list or None receives no outer '
                    f'arguments, got {sorted(pyramid_args)}; write them into '
                    'the list, and _delete_=True where a base config set them')
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
                'freeze_pyramid=True freezes what FPT wraps, got pyramid=None: '
                'wrap the necks before it, or take TrainGraftOnlyHook')
        self.pyramid = self._build_pyramid(pyramid, pyramid_args)
        # The pyramid's own config may have changed it.
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
        branch_cfgs = {name: chosen.unless_given(name, cfg)
                       for name, cfg in zip(BRANCHES, given)}
        if embed_channels is None:
            embed_channels = chosen.embed_channels(
                self.out_channels,
                lcm(*(default_num_mixtures(name, cfg)
                      for name, cfg in branch_cfgs.items())))
        self.embed_channels = check_positive_int('embed_channels',
                                                 embed_channels)
        self._build_branches(branch_cfgs)
        self._watches_keys = bool(self._pooled_branches)
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
                        'pyramid=None needs maps of equal channels, one number '
                        f'as in_channels, got in_channels={channels}')
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
        # Some necks know other names for their channels.
        offered = dict(
            in_channels=self.in_channels, out_channels=self.out_channels)
        self.in_channels = args.get('in_channels', self.in_channels)
        self.out_channels = args.get('out_channels', self.out_channels)
        self.num_outs = args.get('num_outs')
        if self.num_outs is not None:
            check_levels('num_outs', self.num_outs)
        return build_pyramid(args, offered)

    def _build_branches(self, cfgs: dict[str, dict | None]) -> None:
        """One layer a (level, source level) pair, named ``level_source``."""
        # Branches whose forward takes the key stride that the maps give.
        self._pooled_branches: set[str] = set()
        for name, cfg in cfgs.items():
            # mmengine's containers pass init_weights on to their modules.
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
            # A residual level without branches stays the pyramid's.
            self.fusions.append(
                nn.Identity() if width == 0 and fusion == 'residual' else
                FUSIONS[fusion](self.out_channels, width, self.embed_channels,
                                norm_cfg))

    def _branches(self, level: int) -> list[tuple[int, nn.Module, bool]]:
        """(source level, layer, takes a key stride), in the order of fusion."""
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
        """Set the training mode; a frozen pyramid stays in evaluation."""
        super().train(mode)
        self._freeze()
        return self

    # ------------------------------------------------------------- checkpoints

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Accept the plain pyramid's keys; refuse another preset's branches."""
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
            The pyramid's maps (B, C, H_i, W_i), the first ``num_levels`` of
            them transformed.

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
        """What the forward pass gives each branch; none of them is run.

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
        """The pyramid, what the branches read of it, and their key strides."""
        maps = self._pyramid_maps(inputs)
        check_pyramid(
            'inputs' if self.pyramid is None else 'pyramid output', maps,
            self.num_levels, self.out_channels)
        sources = [channels_last(x) for x in maps[:self.num_levels]]
        return maps, sources, self.pooling_strides(maps)

    def pooling_strides(
            self, maps: tuple[Tensor, ...]) -> tuple[int, ...] | None:
        """Strides to the coarsest grid; None where the layers know theirs."""
        if self.key_strides is not None:
            return None
        if self._watches_keys and warn_of_many_keys(maps[self.num_levels - 1]):
            self._watches_keys = False
        return self.fixed_strides or pooling_strides(maps[:self.num_levels])

    def fix_strides(self, inputs: tuple[Tensor, ...]) -> None:
        """Keep the key strides of these inputs for all others.

        A captured graph has them as constants. They are no part of the state.
        """
        self.fixed_strides = None
        training = self.training
        self.eval()  # the pyramid's norms learn nothing from these inputs
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
        """One level of the output, in the memory format of ``x``."""
        branches = [
            self._run(layer,
                      *branch_arguments(level, source, maps,
                                        strides if pooled else None))
            for source, layer, pooled in self._branches(level)
        ]
        fusion = self.fusions[level]
        if not branches:
            out = x if isinstance(fusion, nn.Identity) else fusion(x, None)
        else:
            out = fusion(x, self._drop(level, torch.cat(branches, dim=1)))
        # The heads get what they got from the pyramid: a convolution
        # in another memory format may round in another way.
        return out.contiguous() if x.is_contiguous() else out

    def _run(self, layer: nn.Module, args: tuple, kwargs: dict) -> Tensor:
        """One branch."""
        if self.checkpoint_branches and self.training \
                and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False, **kwargs)
        return layer(*args, **kwargs)

    def _drop(self, level: int, branches: Tensor) -> Tensor:
        if self.drop_blocks is None:
            return branches
        drop = self.drop_blocks[level]
        # DropBlock divides by the number of places of its block.
        if min(branches.shape[2:]) < getattr(drop, 'block_size', 1):
            return branches
        return drop(branches)
