"""The doctor command: diagnose the environment, and say how to fix it.

It must work in a broken environment. Only the standard library is imported here;
everything that may fail or crash runs in another process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .checks import (
    DISTRIBUTIONS,
    FAIL,
    OK,
    SKIP,
    WARN,
    Facts,
    Finding,
    Judged,
    Result,
    diagnose,
)
from .data import DataDiagnosis, examine_data

ERRORS = (OSError, RuntimeError, ValueError)

PROBE = Path(__file__).with_name('probe.py')
TIMEOUT = 600.  # seconds for all steps; imports from a cold disk are slow
STYLES = {OK: 'green', WARN: 'yellow', FAIL: 'bold red', SKIP: 'dim'}


@dataclass(frozen=True)
class Diagnosis(Judged):
    """Facts and findings on the environment."""

    facts: Facts
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict:
        """Return the diagnosis as plain types for JSON."""
        return dict(
            ok=not self.failed,
            distribution=self.facts.stack,
            hosts=list(self.facts.wanted),
            python='.'.join(map(str, self.facts.python)),
            executable=sys.executable,
            installed=dict(self.facts.installed),
            findings=[asdict(finding) for finding in self.findings],
            results={
                step: asdict(result)
                for step, result in self.facts.results.items()
            })


# ------------------------------------------------------------------------- facts


def examine(wanted: Sequence[str] = ('mmdet', 'mmseg'),
            timeout: float = TIMEOUT) -> Diagnosis:
    """Collect the facts and judge them.

    Args:
        wanted: The libraries that must work.
        timeout: Seconds for one run of the probe.
    """
    facts = Facts(
        python=tuple(sys.version_info[:3]),
        installed=installed(),
        results=try_steps(wanted, timeout),
        wanted=tuple(wanted),
        package=os.path.realpath(PROBE.parents[2]))
    return Diagnosis(facts, tuple(diagnose(facts)))


def installed() -> dict[str, str]:
    """Return versions by distribution from the metadata, without imports."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name) or '0'
        except PackageNotFoundError:
            continue
        except Exception:  # metadata that cannot be read
            found[name] = '0'
    return found


def try_steps(wanted: Sequence[str], timeout: float) -> dict[str, Result]:
    """Run probe.py, and restart it after each step that crashes it.

    Returns:
        Results by step, in order.
    """
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'results')
        out.touch()
        while True:
            crash = _run_probe(out, wanted, list(results), timeout)
            started = _read_results(out, results)
            if crash is None:
                return results
            # The step that crashed is the last one that started.
            step = next((s for s in reversed(started) if s not in results), None)
            if step is None:  # the probe itself does not run
                results['probe'] = Result(False, error=crash)
                return results
            results[step] = Result(False, error=crash)
            if crash.startswith('TimeoutExpired'):
                return results


def _run_probe(out: Path, wanted: Sequence[str], done: Sequence[str],
               timeout: float) -> str | None:
    """Run the probe; return how it crashed, or None if it did not."""
    command = [sys.executable, '-W', 'ignore', str(PROBE), str(out), *wanted,
               '--', *done]
    try:
        # Imports may print to stdout; the results are written to a file.
        process = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=timeout, errors='replace')
    except subprocess.TimeoutExpired:
        return f'TimeoutExpired: it takes more than {timeout:g} s'
    if process.returncode == 0:
        return None
    code = process.returncode
    name = signal.Signals(-code).name if -code in {*signal.Signals} else ''
    last = process.stderr.strip().splitlines()[-1:] or ['']
    return f"it ends Python with {name or f'code {code}'}. {last[0]}".strip()


def _read_results(out: Path, results: dict[str, Result]) -> list[str]:
    """Add the results that the probe wrote; return the started steps in order."""
    started = []
    for line in out.read_text(encoding='utf-8').splitlines():
        try:
            read = json.loads(line)
        except ValueError:  # incomplete line of a killed process
            continue
        if read.get('begins'):
            started.append(read['step'])
        else:
            step = read.pop('step')
            results[step] = Result(**read)
    return started


# ----------------------------------------------------------------------- command


def show(diagnosis: Diagnosis | DataDiagnosis) -> None:
    """Print one line for each finding, and how to fix it below."""
    write = _writer()
    counts = dict.fromkeys(STYLES, 0)
    skipped = []
    for finding in diagnosis.findings:
        counts[finding.status] += 1
        if finding.status == SKIP:
            skipped.append(finding.name)
            continue
        write(f'{finding.status:<5}', f'{finding.name}: {finding.text}',
              STYLES[finding.status])
        if finding.cure:
            write(' ' * 5, f'  fix: {finding.cure}', '')
    if skipped:
        write(f'{SKIP:<5}', f"not tried, because an earlier step failed: "
              f"{', '.join(skipped)}", STYLES[SKIP])
    verdict = 'there are problems' if diagnosis.failed else 'everything works'
    write('', f'{verdict}: {counts[FAIL]} failures, {counts[WARN]} warnings', '')


def _writer():
    """Return a function that prints with rich, or without it if it is broken."""
    try:
        from rich.console import Console
        from rich.text import Text
    except Exception:  # missing or broken
        return lambda mark, text, style: print(f'{mark}{text}')
    console = Console()

    def write(mark: str, text: str, style: str) -> None:
        console.print(Text(mark, style=style) + Text(text), soft_wrap=True)

    return write


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        description=textwrap.dedent("""
        Check this environment for problems, and say how to fix them: versions,
        the two distributions of OpenMMLab, mmcv's operators, system libraries,
        names in the registries, configs, and a forward pass. The exit code is 1
        if there are failures; warnings do not count. With --data CONFIG, check
        the data of a config instead: all annotations, the sizes of all images,
        all label maps, names and numbers of classes, and a few loaded samples.
        """))
    parser.add_argument(
        '--hosts',
        nargs='+',
        choices=['mmdet', 'mmseg'],
        default=['mmdet', 'mmseg'],
        help='the libraries that must work (default: both)')
    parser.add_argument(
        '--data',
        metavar='CONFIG',
        help='check the data of this config instead')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='settings that override those of --data')
    parser.add_argument(
        '--json', action='store_true', help='print JSON instead')
    return parser


def main(args: argparse.Namespace) -> Diagnosis | DataDiagnosis:
    """Run the command.

    Raises:
        ValueError: --cfg-options is given without --data.
    """
    if args.data is not None:
        diagnosis = examine_data(args.data, args.cfg_options)
    elif args.cfg_options:
        raise ValueError('--cfg-options needs --data CONFIG')
    else:
        diagnosis = examine(list(dict.fromkeys(args.hosts)))
    if args.json:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        show(diagnosis)
    return diagnosis
