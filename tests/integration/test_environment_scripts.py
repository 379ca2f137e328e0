"""The shell scripts, with a stand-in for Python that installs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ('environment.sh', 'quickstart.sh', 'run_tests.sh')

# Answers the checks of environment.sh, makes an environment that holds itself,
# and notes every call. Files named fail-* make single steps fail.
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


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of the scripts and a Python that is none."""
    repo, notes = tmp_path / 'a checkout', tmp_path / 'notes'
    notes.mkdir()
    (repo / 'tools').mkdir(parents=True)
    for name in (*TOOLS, 'python_of_stack.sh'):
        shutil.copy(ROOT / 'tools' / name, repo / 'tools')
    for name in ('setup.py', 'pyproject.toml', 'fpt_plugin/openmmlab/pins.py'):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repo / name)
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(python))
    monkeypatch.setenv('NOTES', str(notes))
    monkeypatch.setenv('REAL', sys.executable)
    return repo


def call(checkout: Path, script: str, *flags: str, code: int = 0):
    result = subprocess.run(
        ['bash', str(checkout / 'tools' / script), *flags],
        capture_output=True,
        text=True,
        timeout=120)
    assert result.returncode == code, result.stderr
    return result


def calls(checkout: Path) -> str:
    return (checkout.parent / 'notes' / 'calls').read_text()


def note(checkout: Path, name: str) -> Path:
    path = checkout.parent / 'notes' / name
    path.touch()
    return path


def installs(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith('-m pip')]


def test_environment_is_made_once(checkout):
    first = call(checkout, 'environment.sh')
    assert first.stdout.strip() == str(checkout / '.venv/bin/python')
    assert 'about 15 minutes' in first.stderr
    done = calls(checkout)
    for wanted in ('torch==2.13.0', 'setuptools<81', 'mmcv==2.1.0',
                   '.[stock,dev,docs]'):
        assert wanted in done
    second = call(checkout, 'environment.sh')
    assert second.stdout == first.stdout and not second.stderr
    assert installs(calls(checkout)) == installs(done)
    # New requirements are installed into what is there.
    (checkout / 'setup.py').write_text('changed')
    assert 'Making' not in call(checkout, 'environment.sh').stderr
    assert installs(calls(checkout)) != installs(done)


def test_the_other_stack_has_its_own_environment(checkout):
    call(checkout, 'environment.sh')
    other = call(checkout, 'environment.sh', '--stack', 'onedl')
    assert other.stdout.strip() == str(checkout / '.venv-onedl/bin/python')
    assert '.[onedl,dev,docs]' in calls(checkout)


@pytest.mark.parametrize('step, words', [
    ('torch==', 'could not install torch'),
    ('mmcv==', 'could not build mmcv'),
    ('.[stock', 'could not install this package'),
])
def test_a_failed_step_says_what_to_do_and_the_next_run_goes_on(
        checkout, step, words):
    failure = note(checkout, f'fail-{step}')
    failed = call(checkout, 'environment.sh', code=1)
    assert words in failed.stderr and 'no room' in failed.stderr
    assert 'Run the same command again' in failed.stderr
    assert not failed.stdout
    failure.unlink()
    assert call(checkout, 'environment.sh').stdout


def test_old_python(checkout):
    note(checkout, 'old-python')
    assert 'Install Python 3.11' in call(
        checkout, 'environment.sh', code=1).stderr
    assert not (checkout / '.venv').exists()


def test_system_without_gl(checkout):
    note(checkout, 'no-gl')
    call(checkout, 'environment.sh')
    assert 'opencv-python-headless' in calls(checkout)


@pytest.mark.parametrize('script', TOOLS)
@pytest.mark.parametrize('flags', [('--stack', 'mine'), ('--stack', )])
def test_unknown_stack(checkout, script, flags):
    failed = call(checkout, script, *flags, code=2)
    assert '--stack must be stock or onedl' in failed.stderr


@pytest.mark.parametrize('script, command', [
    ('quickstart.sh', 'tools/quickstart.py --neck fpn --epochs 3'),
    ('run_tests.sh', '-m pytest -n logical --maxprocesses 4 --dist loadfile '
     '--neck fpn --epochs 3'),
])
def test_other_flags_are_passed_on(checkout, script, command):
    call(checkout, script, '--neck', 'fpn', '--stack', 'stock', '--epochs', '3')
    assert calls(checkout).splitlines()[-1] == command
