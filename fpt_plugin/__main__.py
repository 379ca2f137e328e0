"""Run the commands of tools/ from any folder: ``python -m fpt_plugin COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from fpt_plugin.commands import COMMANDS
from fpt_plugin.commands.quiet import quiet_deprecations
from fpt_plugin.openmmlab.pins import LIBRARIES, REQUIREMENTS, TORCH
from fpt_plugin.version import __version__


def usage() -> str:
    """Return the list of commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:<{width}}  {command.summary}'
             for name, command in COMMANDS.items()]
    return '\n'.join([
        'usage: python -m fpt_plugin COMMAND [arguments]', '', 'commands:',
        *lines, '', 'python -m fpt_plugin COMMAND --help lists the arguments '
        'of a command.'
    ])


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status.

    Args:
        name: One of :data:`fpt_plugin.commands.COMMANDS`.
        arguments: Arguments of the command; None: those of the process.
    """
    with quiet_deprecations() if COMMANDS[name].quiet else nullcontext():
        _run(name, arguments)


def _run(name: str, arguments: Sequence[str] | None) -> None:
    command = None
    try:
        command = import_module(f'fpt_plugin.commands.{COMMANDS[name].module}')
        args = command.parser().parse_args(arguments)
        result = command.main(args)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (
                'torch', *LIBRARIES):
            sys.exit(f'{name} needs {error.name}, which is not installed: '
                     f'{install_hint(error.name)}')
        if isinstance(error, getattr(command, 'ERRORS', ())):
            sys.exit(f'{name} failed: {error}')
        raise
    except KeyboardInterrupt:
        how = getattr(command, 'INTERRUPTED', 'nothing was finished')
        print(f'{name} interrupted: {how}', file=sys.stderr)
        sys.exit(130)
    sys.exit(getattr(result, 'exit_code', 0))


def install_hint(library: str) -> str:
    """Return the command that installs a library, and a hint to the doctor."""
    wanted = REQUIREMENTS['stock'].get(library, TORCH)
    return (f"pip install '{wanted}'; python -m fpt_plugin doctor lists what else "
            'is missing')


def main() -> None:
    """Run the command that is named in the arguments of the process."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(usage())
        sys.exit()
    if name == '--version':
        print(__version__)
        sys.exit()
    if name not in COMMANDS:
        print(f'unknown command {name!r}\n\n{usage()}', file=sys.stderr)
        sys.exit(2)
    sys.argv = [f'python -m fpt_plugin {name}', *arguments]
    run(name, arguments)


if __name__ == '__main__':
    main()
