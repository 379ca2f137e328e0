"""The public API as lines of text, recorded in public_api.txt.

The lines are registered names with the arguments of their constructors, flags of the
commands, and state-dict keys of some modules. After an addition

    PYTHONPATH=.:tests python -W ignore tests/helpers/public_api.py

records it. A changed or removed line may break configs, scripts or checkpoints: the
script needs ``--break`` for it, and CHANGELOG.md a note.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path

import mmengine.registry
import torch
from mmengine.registry import MODELS, DefaultScope, Registry

import fpt_plugin  # noqa: F401  (registers its modules)
from fpt_plugin.commands import COMMANDS
from fpt_plugin.commands.study import camvid, look_up  # noqa: F401
from fpt_plugin.io.files import replacing

NUMBERS = r'(?:(?<=\.)[\d_]+|(?<=layer)\d)(?=\.)'
# Keys of batch norms, which torch names.
STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')
RECORD = Path(__file__).with_suffix('.txt')

R50 = [256, 512, 1024, 2048]
FPN = dict(type='FPT', preset='full', in_channels=R50, out_channels=256,
           num_outs=5)
# The configs whose state dicts are recorded, by their names in the lines.
MODULES = {
    'FPT': FPN,
    'FPT, concat': dict(FPN, preset='paper'),
    'FPT, default': dict(FPN, preset=None),
    'UFP': dict(type='UFP', in_channels=R50, out_channels=256),
    'LambdaLayer, residual': dict(type='LambdaLayer', in_channels=64, residual=True),
    'LambdaResNet 26t': dict(type='LambdaResNet', depth='26t'),
}


def registered() -> Iterator[str]:
    """Yield names in mmengine's registries, with the arguments of constructors."""
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            for name, found in registry.module_dict.items():
                if found.__module__.startswith('fpt_plugin'):
                    yield f'{registry.name} {name}: {arguments(found)}'


def arguments(function: Callable) -> str:
    """Return names and defaults, as in ``channels, groups=1, *, scale=None``."""
    plain = [argument.replace(annotation=argument.empty)
             for argument in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(plain))[1:-1]


def flags(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield flags, positional arguments and subcommands."""
    place = 0
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield f'flag {command}: {name}'
                yield from flags(f'{command} {name}', inner)
        elif not isinstance(action, argparse._HelpAction):
            name = ' '.join(action.option_strings)
            if not name:  # a positional argument
                name, place = f'[{place}] {action.dest}', place + 1
            needed = action.required if action.option_strings else \
                action.nargs not in ('?', '*')
            takes = '' if action.nargs is None else f' nargs={action.nargs!r}'
            yield f'flag {command}: {name}{takes}' + ' required' * needed


def commands() -> Iterator[str]:
    """Yield the flags of every command."""
    for name, command in COMMANDS.items():
        module = import_module(f'fpt_plugin.commands.{command.module}')
        yield from flags(name, module.parser())


def tensors(modules: dict[str, dict] = MODULES) -> Iterator[str]:
    """Yield the keys and sizes of state dicts; tensors are on the meta device.

    Blocks and levels whose keys differ only in their numbers share a line.
    """
    for name, cfg in modules.items():
        with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
            state_dict = MODELS.build(dict(cfg)).state_dict()
        folded: dict[str, list[str]] = {}
        for key in state_dict:
            if key.endswith(STATISTICS):
                continue
            folded.setdefault(re.sub(NUMBERS, '#', key), []).append(
                '.'.join(re.findall(NUMBERS, key)))
        for line, numbers in folded.items():
            ids = f' at {" ".join(numbers)}' if '#' in line else ''
            yield f'tensor {name}: {line}{ids}'
        count = sum(value.numel() for value in state_dict.values())
        yield f'tensor {name}: {count:,} numbers'


# ------------------------------------------------------------------- comparing


def current() -> list[str]:
    """Return the current lines."""
    return [*registered(), *commands(), *tensors()]


def recorded() -> list[str]:
    """Return the lines of public_api.txt."""
    return RECORD.read_text().splitlines()


def compare(old: Iterable[str], new: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the lines that may break users, and the additions.

    A removed or changed line may break users. So does a new required flag, and a new
    tensor of a known module, which old checkpoints lack.
    """
    old, new = list(old), list(new)
    added = [line for line in new if line not in set(old)]
    broken = [line for line in old if line not in set(new)]
    known = {line.partition(': ')[0] for line in old}
    needed = [line for line in added if line.partition(': ')[0] in known and (
        line.startswith('tensor ') or line.endswith(' required'))]
    return broken + needed, [line for line in added if line not in needed]


def main(args: list[str]) -> str:
    """Record additions; with ``--break`` all changes.

    Raises:
        ValueError: A line is gone without ``--break``, or ``args`` is wrong.
    """
    if args not in ([], ['--break']):
        raise ValueError(f'args must be [] or ["--break"], got {args}')
    lines = current()
    broken, added = compare(recorded() if RECORD.exists() else [], lines)
    if broken and not args:
        raise ValueError('this breaks users; put it back, or record it with --break '
                         'and note it in CHANGELOG.md:\n' + '\n'.join(broken))
    with replacing(RECORD) as temporary:
        temporary.write_text('\n'.join(sorted(lines)) + '\n')
    return f'{len(lines)} lines, {len(added)} of them new, {len(broken)} broken'


if __name__ == '__main__':
    try:
        print(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f'public_api.py: {error}')
