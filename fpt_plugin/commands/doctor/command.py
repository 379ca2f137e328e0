"""Diagnosis of the environment, with cures: what the doctor does.

It must work where nothing else does: here the standard library alone is
imported, and what may fail or crash is tried in another process.
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
TIMEOUT = 600.  # of all steps together, seconds; a cold disk is slow
STYLES = {OK: 'green', WARN: 'yellow', FAIL: 'bold red', SKIP: 'dim'}


@dataclass(frozen=True)
class Diagnosis(Judged):
    """Facts and what they mean."""

    facts: Facts
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict:
        """All of it in plain types."""
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
    """Gather the facts and judge them.

    Args:
        wanted: The hosts that must work.
        timeout: Seconds for all that is tried.
    """
    facts = Facts(
        python=tuple(sys.version_info[:3]),
        installed=installed(),
        results=try_steps(wanted, timeout),
        wanted=tuple(wanted),
        package=os.path.realpath(PROBE.parents[2]))
    return Diagnosis(facts, tuple(diagnose(facts)))


def installed() -> dict[str, str]:
    """Versions by distribution, by their metadata; nothing is imported."""
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
    """Run probe.py, again after each step that kills it.

    Returns:
        Results by step, in order.
    """
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'results')
        out.touch()
        while True:
            why = _run_probe(out, wanted, list(results), timeout)
            begun = _read_results(out, results)
            if why is None:
                return results
            # The step that was running is the last one that began.
            step = next((s for s in reversed(begun) if s not in results), None)
            if step is None:  # the probe itself does not run
                results['probe'] = Result(False, error=why)
                return results
            results[step] = Result(False, error=why)
            if why.startswith('TimeoutExpired'):
                return results


def _run_probe(out: Path, wanted: Sequence[str], done: Sequence[str],
               timeout: float) -> str | None:
    """Why the probe did not end by itself; None where it did."""
    command = [sys.executable, '-W', 'ignore', str(PROBE), str(out), *wanted,
               '--', *done]
    try:
        # The hosts print: what is said here is for the results alone.
        ended = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=timeout, errors='replace')
    except subprocess.TimeoutExpired:
        return f'TimeoutExpired: it takes more than {timeout:g} s'
    if ended.returncode == 0:
        return None
    code = ended.returncode
    name = signal.Signals(-code).name if -code in {*signal.Signals} else ''
    last = ended.stderr.strip().splitlines()[-1:] or ['']
    return f"it ends Python with {name or f'code {code}'}. {last[0]}".strip()


def _read_results(out: Path, results: dict[str, Result]) -> list[str]:
    """Add what the probe wrote; the steps that began, in order."""
    begun = []
    for line in out.read_text(encoding='utf-8').splitlines():
        try:
            read = json.loads(line)
        except ValueError:  # half a line of a killed process
            continue
        if read.get('begins'):
            begun.append(read['step'])
        else:
            step = read.pop('step')
            results[step] = Result(**read)
    return begun


# ----------------------------------------------------------------------- command


def show(diagnosis: Diagnosis | DataDiagnosis) -> None:
    """Print one line a finding, and its cure below it."""
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
            write(' ' * 5, f'  cure: {finding.cure}', '')
    if skipped:
        write(f'{SKIP:<5}', f"not tried, as something before fails: "
              f"{', '.join(skipped)}", STYLES[SKIP])
    verdict = 'something would fail' if diagnosis.failed else 'everything works'
    write('', f'{verdict}: {counts[FAIL]} failures, {counts[WARN]} warnings', '')


def _writer():
    """Prints by rich, or plainly where rich cannot be imported."""
    try:
        from rich.console import Console
        from rich.text import Text
    except Exception:  # a broken one, too
        return lambda mark, text, style: print(f'{mark}{text}')
    console = Console()

    def write(mark: str, text: str, style: str) -> None:
        console.print(Text(mark, style=style) + Text(text), soft_wrap=True)

    return write


def parser() -> argparse.ArgumentParser:
    """The flags of tools/doctor.py."""
    parser = argparse.ArgumentParser(
        description=textwrap.dedent("""
        Look for what would fail in this environment, and say what cures it:
        versions, the two distributions of OpenMMLab, mmcv's operators, system
        libraries, names in the registries, configs, and a forward pass. The
        exit code is 1 where something would fail; warnings do not count. With
        --data CONFIG the data of a config are looked at instead: all annotations,
        the sizes of all images, all label maps, names and numbers of classes,
        and a few samples as they are loaded.
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
        help='look at the data of this config instead')
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
    """What tools/doctor.py does.

    Raises:
        ValueError: There are settings without a config.
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
