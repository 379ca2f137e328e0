"""Read, convert and write the files of the graft command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from torch import Tensor, nn

from ...io.checkpoints import (
    Weights,
    fetch_state_dict,
    read_state_dict,
    summarised,
    write_weights,
)
from ...io.files import check_writable, write_json
from ...openmmlab.models import build_model
from ..common import load_weights, load_what_fits
from ..console import print_lines
from ..convert_weights.key_maps import Conversion
from .backbone import convert_backbones
from .costs import Costs
from .planning import Plan
from .proof import Proof, notes_of
from .text import base_name, check_text, config_text, write_config


class Files:
    """The files in the command's arguments, after a check that they can be written.

    Args:
        args: The arguments.

    Attributes:
        converted: The converted checkpoint; None without --write-checkpoint.
        load_from: The weights that the new config starts from.

    Raises:
        OSError: A file exists already, or is a folder.
        ValueError: A name is not allowed, or an argument is missing.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.out).parent if args.out else Path()
        if args.out is not None:
            check_writable(args.out, suffixes=['.py'], read=[args.config],
                           force=args.force, name='--out')
        if args.json is not None:
            check_writable(args.json, read=[args.config, args.checkpoint, args.out],
                           force=args.force, name='--json')
        self.converted = self._converted() if args.write_checkpoint else None
        self.load_from = self.converted if args.backbone else args.checkpoint

    def _converted(self) -> str:
        args = self.args
        if not (args.backbone and args.checkpoint and args.out):
            raise ValueError('--write-checkpoint needs --backbone, --checkpoint '
                             'and --out')
        name = Path(args.out).with_suffix('.pth')
        check_writable(name, read=[args.checkpoint], force=args.force,
                       name='the checkpoint beside --out')
        return str(name)

    def text_of(self, base: Config, made: Plan) -> str:
        """Return the text of the new config, checked in its folder."""
        text = config_text(base, made.cfg,
                           base_name(self.args.config, self.folder))
        if self.args.out is not None:
            check_text(text, made.cfg, self.folder)
        return text

    def read_weights(self, plain: Config, made: Plan,
                     console: Console) -> Weights | None:
        """Read the checkpoint and convert it for a new backbone; None if unneeded."""
        source, new_backbone = self.args.checkpoint, self.args.backbone
        if not source or (self.args.no_proof and not new_backbone):
            return None
        weights = fetch_state_dict(source) if '://' in source else \
            read_state_dict(source)
        if not new_backbone:
            return weights
        loaded = load_weights(build_model(plain), weights.state_dict, source,
                              other_classes=True)
        print_lines(notes_of(loaded, source), console)
        state_dict, conversions = convert_backbones(weights.state_dict,
                                                    _backbone(made))
        print_lines(_kept_lines(conversions, source), console)
        print_lines([_new_line(build_model(made.cfg), state_dict)], console)
        return Weights(state_dict)

    def write(self, text: str, made: Plan, weights: Weights | None,
              console: Console) -> None:
        """Write the config and the converted checkpoint, or print the config."""
        if self.args.out is None:
            print_lines([text], console)
            return
        if self.converted is not None:
            write_weights(weights.state_dict, self.converted)
            console.print(f'written {self.converted}', highlight=False)
        elif self.args.backbone and self.args.checkpoint:
            console.print('load_from is not set: use --write-checkpoint to '
                          'convert the checkpoint for the LambdaResNet')
        write_config(text, made.cfg, self.args.out)
        console.print(f'written {self.args.out}', highlight=False)

    def write_figures(self, made: Plan, proof: Proof | None,
                      spent: Costs | None) -> None:
        """Write the results as JSON, if --json names a file."""
        if self.args.json is None:
            return
        comparisons = () if proof is None else proof.comparisons
        write_json(
            self.args.json,
            dict(
                config=self.args.config,
                notes=list(made.notes),
                identical=None if proof is None else proof.identical,
                comparisons=[vars(c) for c in comparisons],
                costs=None if spent is None else spent.to_dict()))


def _backbone(made: Plan) -> dict:
    """Return the config of the new backbone, of the last site if there are several."""
    node = made.cfg.model
    for key in made.sites[-1].path:
        node = node[key]
    return node['backbone'].to_dict()


def _kept_lines(conversions: Mapping[str, Conversion],
                source: str) -> Iterator[str]:
    """Yield lines on the tensors of each old backbone that are kept."""
    for prefix, conversion in conversions.items():
        old = [*conversion.sources.values(), *conversion.skipped]
        yield (f'{prefix[:-1]}: kept {len(conversion.sources)} of {len(old)} '
               f'tensors of {source}')
        for why in dict.fromkeys(conversion.skipped.values()):
            keys = [k for k, v in conversion.skipped.items() if v == why]
            yield f'  left out, {why}: {", ".join(summarised(keys, old))}'


def _new_line(model: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """Return a line on the model's tensors that are not in its checkpoint."""
    result, _ = load_what_fits(model, state_dict)  # heads may not fit
    wanted = {key: value for key, value in model.state_dict().items()
              if not key.endswith('num_batches_tracked')}
    new = [key for key in result.missing_keys if key in wanted]
    count = sum(wanted[key].numel() for key in new)
    return f'new, {count:,} parameters: {", ".join(summarised(new, wanted))}'
