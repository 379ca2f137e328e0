"""``python -m fpt_plugin``: its commands, exit codes, errors and hidden warnings."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import types
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import fpt_plugin
from fpt_plugin import __main__ as command_line
from fpt_plugin.commands import COMMANDS, Command
from fpt_plugin.openmmlab.pins import REQUIREMENTS

ROOT = Path(__file__).parents[1]


def test_each_command_has_a_tool():
    assert {path.stem for path in (ROOT / 'tools').glob('*.py')} == set(COMMANDS)


@pytest.mark.parametrize('name', COMMANDS)
def test_each_command_has_flags_and_a_function(name):
    module = import_module(f'fpt_plugin.commands.{COMMANDS[name].module}')
    assert module.parser().format_help().startswith('usage: ')
    assert callable(module.main)


def call(monkeypatch, *arguments: str) -> str | int | None:
    """Return the exit status of the process."""
    monkeypatch.setattr(sys, 'argv', ['-m', *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return end.value.code


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h']])
def test_help_lists_the_commands(arguments, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) is None
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert sum(line.split()[:1] == [name] and line.endswith(command.summary)
                   for line in lines) == 1


def test_unknown_command_and_version(monkeypatch, capsys):
    assert call(monkeypatch, 'graf') == 2
    assert capsys.readouterr().err.startswith("unknown command 'graf'")
    assert call(monkeypatch, '--version') is None
    assert capsys.readouterr().out == f'{fpt_plugin.__version__}\n'


@pytest.fixture
def command(monkeypatch):
    """Return a function that registers and runs a command with this ``main``."""

    def run(main, *arguments, quiet=True, **attributes):
        module = types.ModuleType('fpt_plugin.commands.own')

        def parser():
            parser = argparse.ArgumentParser()
            parser.add_argument('--number', type=int, default=1)
            return parser

        vars(module).update(main=main, parser=parser, **attributes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, 'own', Command('own', 'test', quiet))
        return call(monkeypatch, 'own', *arguments)

    return run


def raising(error):
    """Return a ``main`` that raises an error."""

    def main(args):
        raise error

    return main


def test_flags_and_exit_codes(command, capsys):
    assert command(lambda args: print(args.number), '--number', '3') == 0
    assert capsys.readouterr().out == '3\n'
    assert command(lambda args: types.SimpleNamespace(exit_code=1)) == 1


def test_expected_errors_end_with_a_line(command):
    main = raising(ValueError('number must be even, got 1'))
    assert command(main, ERRORS=(ValueError, )) == (
        'own failed: number must be even, got 1')
    with pytest.raises(ValueError, match='even'):  # with its traceback
        command(main)


@pytest.mark.parametrize('how, said', [
    (dict(INTERRUPTED='run it again'), 'run it again'), ({}, 'nothing was finished')])
def test_interrupted_commands_say_how_to_continue(command, capsys, how, said):
    assert command(raising(KeyboardInterrupt), **how) == 130
    assert capsys.readouterr().err == f'own interrupted: {said}\n'


@pytest.mark.parametrize('errors', [(), (ImportError, )])
def test_missing_library_is_named_with_its_requirement(command, errors):
    said = command(raising(ModuleNotFoundError(
        "No module named 'mmdet'", name='mmdet')), ERRORS=errors)
    assert said.startswith('own needs mmdet, which is not installed: ')
    assert REQUIREMENTS['stock']['mmdet'] in said and 'doctor' in said


def test_another_missing_module_keeps_its_traceback(command):
    main = raising(ModuleNotFoundError('no other', name='other'))
    with pytest.raises(ModuleNotFoundError):
        command(main)
    assert command(main, ERRORS=(ImportError, )) == 'own failed: no other'


DEPRECATIONS = [
    (FutureWarning, '`torch.cuda.amp.autocast(args...)` is deprecated.'),
    (DeprecationWarning, 'old'), (PendingDeprecationWarning, 'soon old'),
    (UserWarning, 'pkg_resources is deprecated as an API.'),
    (UserWarning, 'torch.meshgrid: in an upcoming release, ...')]


def warn_of_all(args):
    # First in a child process.
    code = 'import warnings\n' + ''.join(
        f'warnings.warn({text!r}, {kind.__name__})\n'
        for kind, text in DEPRECATIONS)
    child = subprocess.run([sys.executable, '-c', code], capture_output=True,
                           text=True, check=True)
    assert child.stderr == ''
    warnings.simplefilter('always')
    for kind, text in DEPRECATIONS:
        warnings.warn(text, kind, stacklevel=1)
    warnings.warn('the checkpoint is of another model', UserWarning, stacklevel=1)


def test_deprecations_are_hidden_and_other_warnings_are_not(command, capsys):
    assert command(warn_of_all) == 0
    said = capsys.readouterr().err
    assert 'the checkpoint is of another model' in said
    assert not any(text in said for _, text in DEPRECATIONS)


@pytest.mark.parametrize('errors', [(ValueError, ), ()])
def test_failure_shows_all_warnings(command, capsys, errors):

    def main(args):
        warn_of_all(args)
        raise ValueError('no')

    if errors:
        assert command(main, ERRORS=errors) == 'own failed: no'
    else:
        with pytest.raises(ValueError, match='no'):
            command(main)
    said = capsys.readouterr().err
    assert all(text in said for _, text in DEPRECATIONS)


def test_warnings_are_restored_after_a_command(command, monkeypatch):
    monkeypatch.setenv('PYTHONWARNINGS', 'error')
    command(lambda args: None)
    assert os.environ['PYTHONWARNINGS'] == 'error'
    with pytest.warns(FutureWarning, match='later'):
        warnings.warn('later', FutureWarning, stacklevel=1)
    logging.captureWarnings(True)
    try:
        command(lambda args: None)
        assert warnings.showwarning.__module__ == 'logging'
    finally:
        logging.captureWarnings(False)


def run_python(*arguments, path):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join(path)))


def test_doctor_starts_with_broken_libraries(tmp_path):
    for name in ('mmengine', 'mmcv'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text('raise OSError("broken")')
    result = run_python('-m', 'fpt_plugin', 'doctor', '--help',
                        path=[str(tmp_path), str(ROOT)])
    assert result.returncode == 0, result.stderr
    assert '--hosts' in result.stdout


@pytest.mark.parametrize('name', ['my_doctor.py', 'tools/doctor.py'])
def test_other_programs_named_doctor_import_the_package(tmp_path, name):
    """Only the doctor of this package skips the modules."""
    program = tmp_path / name
    program.parent.mkdir(exist_ok=True)
    program.write_text('import fpt_plugin\nprint(fpt_plugin.FPT.__name__)')
    result = run_python(str(program), path=[str(ROOT)])
    assert result.stdout == 'FPT\n', result.stderr
