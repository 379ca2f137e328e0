"""What users write and what their checkpoints hold, as lines of text.

The lines are recorded in public_api.txt, one for a name, an argument with its
place and default, a flag, a config's name, or a tensor with its shape. Others
rely on each of them. After an addition

    python tests/public_api.py

records it. It refuses to drop or change a line: that breaks configs, code or
checkpoints, and wants ``--break`` and a line in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import mmengine.registry
import torch
from mmengine.registry import MODELS, DefaultScope, Registry

import fpt_plugin
from fpt_plugin.backbones.architectures import ARCHITECTURES
from fpt_plugin.io.files import replacing

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_suffix('.txt')
PACKAGES = ('fpt_plugin', 'fpt_plugin.functional', 'fpt_plugin.layers',
            'fpt_plugin.necks', 'fpt_plugin.backbones', 'fpt_plugin.detectors',
            'fpt_plugin.engine')
# What a tool does, for those who call it from Python.
FUNCTIONS = (
    'complexity.complexity', 'complexity.neck_complexity', 'graft.graft',
    'graft.Options', 'publish.publish', 'weights.convert_weights',
    'visualize_attention.visualize_attention', 'doctor.examine',
    'launch.train_config', 'launch.test_config', 'host_models.load_model',
    'weight_files.read_state_dict', 'weight_files.fetch_state_dict')

R50 = [256, 512, 1024, 2048]
CONCAT = dict(embed_channels=256, key_strides=1, fusion='concat')
FPN = dict(type='FPT', in_channels=R50, out_channels=256, num_outs=5)
OVER_UFP = dict(type='FPT', in_channels=R50, out_channels=256, pyramid=dict(
    type='UFP'), grounding_transformer=dict(type='LocalGroundingTransformer'))


def _layer(name: str, **kwargs) -> dict:
    return dict(type=name, in_channels=64, **kwargs)


# By what a line calls them: the configs whose state dicts are recorded.
MODULES = {
    'FPT over FPN': FPN,
    'FPT over FPN, paper preset': dict(
        FPN, pyramid=dict(type='BottomUpPyramid'), **CONCAT),
    'FPT over FPN, fusion_norm_cfg': dict(FPN, fusion_norm_cfg=dict(type='BN')),
    'FPT over UFP': OVER_UFP,
    'FPT over UFP, paper preset': dict(OVER_UFP, **CONCAT),
    'FPT without a pyramid': dict(
        type='FPT', in_channels=256, out_channels=256, num_levels=2,
        pyramid=None),
    'FPT over a list': dict(
        FPN, num_levels=4, pyramid=[dict(
            type='FPN', in_channels=R50, out_channels=256, num_outs=5),
            dict(type='BFP', in_channels=256, num_levels=5)]),
    **{name: dict(FPN, type=name) for name in (
        'SelfTransformerNeck', 'GroundingTransformerNeck',
        'RenderingTransformerNeck', 'BottomUpPyramid')},
    'UFP': dict(type='UFP', in_channels=R50, out_channels=256),
    **{name: _layer(name) for name in (
        'SelfTransformer', 'GroundingTransformer', 'LocalGroundingTransformer',
        'RenderingTransformer', 'LambdaLayer')},
    'LambdaLayer, residual': _layer('LambdaLayer', residual=True),
    'LambdaLayer, all options': _layer(
        'LambdaLayer', out_channels=32, intra_depth=2, context_size=[3, 5],
        content_bias=True),
    **{f'LambdaResNet {depth}': dict(type='LambdaResNet', depth=depth)
       for depth in ARCHITECTURES},
}


# -------------------------------------------------------------------- names


def names(packages: Iterable[str | ModuleType] = PACKAGES) -> Iterator[str]:
    """Public names, the arguments of what can be called, and methods."""
    for package in packages:
        module = package if isinstance(package, ModuleType) else import_module(
            package)
        for name in module.__all__:
            whole = f'{module.__name__}.{name}'
            yield f'name {whole}'
            found = getattr(module, name)
            # once, where it is at home in the shortest way
            if whole.count('.') == 1 or not hasattr(fpt_plugin, name):
                yield from members(whole, found)
    for name in FUNCTIONS:
        module, _, function = name.partition('.')
        whole = f'fpt_plugin.commands.{name}'
        yield f'name {whole}'
        yield from arguments(
            whole, getattr(import_module(f'fpt_plugin.commands.{module}'), function))


def members(whole: str, found: object) -> Iterator[str]:
    """Arguments of a function; of a class those of its public methods, too."""
    if inspect.isfunction(found):
        yield from arguments(whole, found)
    if not inspect.isclass(found):
        return
    for name in dir(found):
        member = inspect.getattr_static(found, name)
        own = getattr(member, '__func__', None) or getattr(
            member, 'fget', None) or member
        if not inspect.isfunction(own) or not _ours(own):
            continue  # the bases' own
        if name == '__init__':
            yield from arguments(whole, own, skip=1)
        elif not name.startswith('_'):
            yield f'name {whole}.{name}'
            if not isinstance(member, property):
                yield from arguments(f'{whole}.{name}', own,
                                     skip=not isinstance(member, staticmethod))


def _ours(found: object) -> bool:
    return (found.__module__ or '').split('.')[0] == 'fpt_plugin'


def arguments(whole: str, function: Callable, skip: int = 0) -> Iterator[str]:
    """One line for each argument: its place or ``*``, its name, its default."""
    signature = inspect.signature(function)
    for place, argument in enumerate(
            list(signature.parameters.values())[skip:]):
        marks = {argument.KEYWORD_ONLY: '*', argument.VAR_KEYWORD: '**',
                 argument.VAR_POSITIONAL: '*args'}
        where = marks.get(argument.kind, place)
        default = ''
        if where == '*' or isinstance(where, int):
            default = ' required' if argument.default is argument.empty else \
                f'={_text(argument.default)}'
        yield f'argument {whole}: [{where}] {argument.name}{default}'


def _text(value: object) -> str:
    """A default without the address of what it is."""
    name = getattr(value, '__qualname__', None)
    return f'{value.__module__}.{name}' if name else repr(value)


def registered() -> Iterator[str]:
    """Names that configs find in mmengine's registries."""
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            for name, found in registry.module_dict.items():
                if _ours(found):
                    yield f'registered {registry.name} {name}'


# ----------------------------------------------------------- tools and configs


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each tool and its parser, by what the tool imports."""
    for tool in sorted((ROOT / 'tools').glob('*.py')):
        for node in ast.walk(ast.parse(tool.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if alias.name.endswith('parser'):
                    module = import_module(node.module)
                    yield tool.name, getattr(module, alias.name)()


def flags(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Flags, positional arguments and subcommands with what they take."""
    yield f'command {command}'
    place = 0
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from flags(f'{command} {name}', inner)
        elif not isinstance(action, argparse._HelpAction):
            required = action.required if action.option_strings else \
                action.nargs not in ('?', '*')
            takes = '' if action.nargs is None else f' nargs={action.nargs!r}'
            default = ' required' if required else f'={_text(action.default)}'
            spellings = action.option_strings
            if not spellings:  # given by its place
                spellings, place = [f'[{place}] {action.dest}'], place + 1
            for spelling in spellings:
                yield f'flag {command}: {spelling}{takes}{default}'
                for choice in action.choices or ():
                    yield f'flag {command}: {spelling} takes {choice!r}'


def files() -> Iterator[str]:
    """Configs that others name as bases, tools, and environment variables."""
    for folder, pattern in (('configs', '*/**/*.py'), ('tools', '*')):
        for path in (ROOT / folder).glob(pattern):
            if path.is_file():
                yield f'file {path.relative_to(ROOT).as_posix()}'
    for path in (ROOT / 'fpt_plugin').rglob('*.py'):
        if '.mim' not in path.parts:
            for name in re.findall(r"environ\W+get\('(FPT_\w+)'",
                                   path.read_text()):
                yield f'variable {name}'


# -------------------------------------------------------------- state dicts


def tensors(modules: dict[str, dict] = MODULES) -> Iterator[str]:
    """Keys and shapes of state dicts; nothing gets memory.

    Blocks of a ResNet's stage that have a tensor of one shape share a line.
    """
    for name, cfg in modules.items():
        with DefaultScope.overwrite_default_scope('mmdet'), \
                torch.device('meta'):
            state_dict = MODELS.build(dict(cfg)).state_dict()
        blocks: dict[str, list[int]] = {}
        for key, value in state_dict.items():
            match = re.fullmatch(r'(layer\d)\.(\d+)\.(.+)', key)
            line = f'tensor {name}: %s {tuple(value.shape)}'
            if match is None:
                yield line % key
            else:
                folded = line % f'{match[1]}.#.{match[3]}'
                blocks.setdefault(folded, []).append(int(match[2]))
        for line, numbers in blocks.items():
            yield line.replace('#', _ranges(numbers))


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 as ``{0-2,5}``."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [f'{a}' if a == b else f'{a}-{b}' for a, b in ranges]
    return f"{{{','.join(texts)}}}"


# ------------------------------------------------------------------- comparing


def current() -> list[str]:
    """Every line as it is now, each once, in an order of its own."""
    lines = [*names(), *registered(), *files(), *tensors()]
    for tool, parser in parsers():
        lines += flags(tool, parser)
    return list(dict.fromkeys(lines))


def recorded() -> list[str]:
    """Every line of public_api.txt."""
    return RECORD.read_text().splitlines()


def compare(old: Iterable[str], new: Iterable[str]) -> tuple[list[str], list[str]]:
    """What breaks others, and what is added.

    A line that is gone or differs breaks; so does a new argument or flag that
    must be given to what was there before, and a new tensor of a module that
    was there before, which old checkpoints lack.
    """
    old, new = list(old), list(new)
    known = {_owner(line) for line in old}
    added = [line for line in new if line not in set(old)]
    broken = [line for line in old if line not in set(new)]
    needed = [line for line in added if _owner(line) in known and (
        line.endswith(' required') or line.startswith('tensor '))]
    return broken + needed, [line for line in added if line not in needed]


def _owner(line: str) -> str:
    """What a line belongs to: a callable, a command or a module."""
    return line.partition(' ')[2].partition(': ')[0]


def main(args: list[str]) -> str:
    """Record what is new; with ``--break`` also what is gone.

    Raises:
        ValueError: Something is gone and ``--break`` is not given, or another
            argument is.
    """
    if args not in ([], ['--break']):
        raise ValueError(f'expected nothing or --break, got {args}')
    lines = current()
    old = recorded() if RECORD.exists() else []
    broken, added = compare(old, lines)
    if broken and not args:
        raise ValueError('this breaks what others rely on; put it back, or '
                         'record it with --break and say so in CHANGELOG.md:\n'
                         + '\n'.join(broken))
    with replacing(RECORD) as temporary:
        temporary.write_text('\n'.join(sorted(lines)) + '\n')
    return f'{len(lines)} lines, {len(added)} of them new, {len(broken)} broken'


if __name__ == '__main__':
    try:
        print(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f'public_api.py: {error}')
