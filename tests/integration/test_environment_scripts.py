"""environment.sh and the scripts that use it, with a stand-in for Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ('environment.sh', 'quickstart.sh', 'run_tests.sh')

# Passes the checks of environment.sh, copies itself into new environments, and logs
# every call. A file named fail-STEP makes that step fail.
STAND_IN = """#!/usr/bin/env bash
echo "$@" >>"$NOTES/calls"
case "$1 $2" in
    "--version "*) echo "Python 3.11.0" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip")
        for step in "$NOTES"/fail-*; do
            case "$*" in *"${step#*fail-}"*) echo "no room"; exit 1 ;; esac
        done
        case "$*" in *mmcv==*) touch "$NOTES/mmcv" ;; esac ;;
    "-c "*find_spec*) [ -e "$NOTES/mmcv" ] ;;
    "-c import cv2") [ ! -e "$NOTES/no-gl" ] ;;
    "-c "*runpy*) exec "$REAL" "$@" ;;
    "-c "*version_info*) [ ! -e "$NOTES/old-python" ] ;;
esac
"""


class Checkout:
    """A checkout with the scripts, and the notes of the stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.repo, self.notes = folder / 'a checkout', folder / 'notes'
        self.notes.mkdir()
        for name in (*(f'tools/{name}' for name in (*TOOLS, 'python_of_stack.sh')),
                     'setup.py', 'pyproject.toml', 'fpt_plugin/openmmlab/pins.py'):
            (self.repo / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.repo / name)

    def run(self, script: str, *flags: str, code: int = 0):
        result = subprocess.run(
            ['bash', str(self.repo / 'tools' / script), *flags],
            capture_output=True, text=True, timeout=120)
        assert result.returncode == code, result.stderr
        return result

    def calls(self) -> str:
        """Return the command lines that the stand-in got."""
        return (self.notes / 'calls').read_text()

    def installs(self) -> list[str]:
        return [x for x in self.calls().splitlines() if x.startswith('-m pip')]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    checkout = Checkout(tmp_path)
    for name, value in (('PYTHON', python), ('NOTES', checkout.notes),
                        ('REAL', sys.executable)):
        monkeypatch.setenv(name, str(value))
    return checkout


def test_environment_is_made_once(checkout):
    first = checkout.run('environment.sh')
    assert first.stdout.strip() == str(checkout.repo / '.venv/bin/python')
    assert 'about 15 minutes' in first.stderr
    done = checkout.installs()
    for wanted in ('torch==2.13.0', 'setuptools<81', 'mmcv==2.1.0',
                   '.[stock,dev,docs]'):
        assert wanted in checkout.calls()
    second = checkout.run('environment.sh')
    assert second.stdout == first.stdout and not second.stderr
    assert checkout.installs() == done
    # New requirements are installed into the same environment.
    (checkout.repo / 'setup.py').write_text('changed')
    assert 'Making' not in checkout.run('environment.sh').stderr
    assert checkout.installs() != done
    # The other stack has its own.
    other = checkout.run('environment.sh', '--stack', 'onedl')
    assert other.stdout.strip() == str(checkout.repo / '.venv-onedl/bin/python')
    assert '.[onedl,dev,docs]' in checkout.calls()


@pytest.mark.parametrize('step, words', [
    ('torch==', 'could not install torch'), ('mmcv==', 'could not build mmcv'),
    ('.[stock', 'could not install this package')])
def test_failed_step_can_be_repeated(checkout, step, words):
    failure = checkout.notes / f'fail-{step}'
    failure.touch()
    failed = checkout.run('environment.sh', code=1)
    assert words in failed.stderr and 'no room' in failed.stderr
    assert 'run the same command again' in failed.stderr
    assert not failed.stdout
    failure.unlink()
    assert checkout.run('environment.sh').stdout


def test_old_python(checkout):
    (checkout.notes / 'old-python').touch()
    failed = checkout.run('environment.sh', code=1)
    assert 'Install Python 3.11' in failed.stderr
    assert not (checkout.repo / '.venv').exists()


def test_system_without_gl(checkout):
    (checkout.notes / 'no-gl').touch()
    checkout.run('environment.sh')
    assert 'opencv-python-headless' in checkout.calls()


@pytest.mark.parametrize('script', TOOLS)
@pytest.mark.parametrize('flags', [('--stack', 'mine'), ('--stack', )])
def test_unknown_stack(checkout, script, flags):
    failed = checkout.run(script, *flags, code=2)
    assert '--stack must be stock or onedl' in failed.stderr


@pytest.mark.parametrize('script, command', [
    ('quickstart.sh', 'tools/quickstart.py --neck fpn --epochs 3'),
    ('run_tests.sh', '-m pytest -n logical --maxprocesses 4 --dist loadfile '
     '--neck fpn --epochs 3')])
def test_other_flags_are_passed_on(checkout, script, command):
    checkout.run(script, '--neck', 'fpn', '--stack', 'stock', '--epochs', '3')
    assert checkout.calls().splitlines()[-1] == command
