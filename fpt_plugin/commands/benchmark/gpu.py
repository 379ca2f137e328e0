"""All measurements on one GPU in one run: suites, JSON and table."""

from __future__ import annotations

import argparse
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from ...io.files import check_writable, write_bytes, write_json
from .cases import AttentionCase, LocalCase
from .lambdas import LambdaCase
from .largest import LargestImage
from .markdown import row
from .measuring import Case, environment, measure
from .networks import NetworkCase

DTYPES = ('float32', 'bfloat16')
SUITES = ('attention', 'local_attention', 'position_lambda', 'networks', 'largest')
# Levels of an 800x1344 image: two images, 128 channels and the pooling of the
# preset 'full'; and one image, 256 channels and all keys.
POOLED = ('st:P5', 'st:P4@2', 'st:P3@4', 'st:P2@8', 'gt:P4-P5', 'gt:P3-P4@2',
          'gt:P2-P3@4')
WHOLE = ('st:P4', 'st:P3', 'gt:P3-P4')
LOCAL = ('97x97', '64x128', '200x336-100x168')
LAMBDA = ('50x84x64', '25x42x128', '64x128x128')
# Memory of common devices, in GiB.
DEVICES = (8, 24, 80)
LARGEST = 'LambdaResNet-50 + FPT'
# Seconds of repeats per case; the first few repeats always run.
CASE_SECONDS = 4
# Fraction of a device's free memory that a candidate may need.
SHARE = 0.8


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        out: The JSON file.
        failed: Candidates that raised an error, as ``suite case candidate``.
    """

    out: Path
    failed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 if a candidate failed, else 0."""
        return int(bool(self.failed))


def suites(device: str, dtype: str, tiny: bool) -> dict[str, list[Case]]:
    """Make the cases of each suite.

    Args:
        device: ``'cuda'`` or ``'cpu'``.
        dtype: Type of the tensors, or of autocast for networks.
        tiny: Use sizes that take seconds on a CPU.
    """
    common = dict(device=device, dtype=dtype)
    if tiny:
        attention = [
            AttentionCase.parse(
                text, (65, 96), channels=16, paths=True, **common)
            for text in ('st:P4', 'gt:P3-P4', 'gt:P2-P3@4')
        ]
        local = [LocalCase.parse('9x8', channels=8, paths=True, **common),
                 LocalCase.parse('8x8-4x3', channels=8, paths=True, **common)]
        lambdas = [LambdaCase.parse('9x8x4', window=5, **common)]
        networks = [
            NetworkCase('33x64', shape=(33, 64), names=(LARGEST, ), **common)
        ]
    else:
        shape = (800, 1344)
        attention = [
            AttentionCase.parse(
                text, shape, channels=channels, batch=batch, paths=True,
                **common)
            for texts, channels, batch in ((POOLED, 128, 2), (WHOLE, 256, 1))
            for text in texts
        ]
        local = [
            LocalCase.parse(text, channels=128, batch=2, paths=True, **common)
            for text in LOCAL
        ]
        lambdas = [LambdaCase.parse(text, batch=2, **common)
                   for text in LAMBDA]
        networks = [
            NetworkCase('800x1344', shape=shape, batch=2, **common)
        ]
    found = dict(
        attention=attention, local_attention=local, position_lambda=lambdas,
        networks=networks)
    return {name: [_named(case) for case in cases]
            for name, cases in found.items()}


def _named(case: Case) -> Case:
    """Add batch and channels to the name of a case."""
    sizes = case.facts()
    name = f'{case.name}, batch {sizes["batch"]}'
    if not isinstance(case, LambdaCase) and 'channels' in sizes:
        name += f', {sizes["channels"]} channels'
    return replace(case, name=name)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``benchmark gpu``."""
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda')
    parser.add_argument(
        '--dtypes', nargs='+', choices=('float32', 'bfloat16', 'float16'),
        default=DTYPES)
    parser.add_argument(
        '--tiny', action='store_true',
        help='small sizes, to test the command in seconds')
    parser.add_argument(
        '--suites', nargs='+', choices=SUITES, default=SUITES,
        help='what to measure (default: everything)')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument(
        '--minutes', type=float, default=5.5,
        help='start no further case after this time')
    parser.add_argument(
        '--tests', metavar='XML',
        help="pytest's --junit-xml of the tests marked cuda, to record")
    parser.add_argument(
        '--out',
        help='JSON file; the table is written to the same name with .md; default: '
        'benchmarks/gpu-NAME_OF_THE_DEVICE.json')


def main(args: argparse.Namespace) -> Result:
    """Run all suites, and write JSON and table after each of them.

    Raises:
        ValueError: A flag is out of range, or the device is missing.
    """
    for name in ('repeats', 'minutes'):
        if getattr(args, name) <= 0:
            raise ValueError(
                f'--{name} must be positive, got {getattr(args, name)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda needs a CUDA device, got a torch that '
                         'finds none')
    deadline = time.monotonic() + 60 * args.minutes
    machine = environment(args.device)
    out = Path(args.out or f'benchmarks/gpu-{slug(machine["device"])}.json')
    check_writable(out, suffixes=['.json'], name='--out')
    content = dict(
        command='gpu', tiny=args.tiny, repeats=args.repeats, environment=machine,
        tests=None if args.tests is None else read_tests(args.tests),
        suites=[], largest_images=[])
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for part in _parts(args, deadline, progress):
            for key, found in part.items():
                content[key].append(found)
            write_json(out, content)
            write_bytes(out.with_suffix('.md'), markdown(content).encode())
            if not console.is_terminal:
                print(*_progress(part), sep='\n', flush=True)
    print(markdown(content))
    print(f'Written to {out} and {out.with_suffix(".md").name}')
    return Result(out, tuple(_failed(content)))


def read_result(path: str | Path) -> dict:
    """Read the JSON of a run.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not a result of this command.
    """
    content = json.loads(Path(path).read_text('utf-8'))
    if not isinstance(content, dict) or content.get('command') != 'gpu':
        raise ValueError('result must be the JSON file of benchmark gpu, got '
                         f'{path}')
    return content


def slug(name: str) -> str:
    """Convert ``'NVIDIA H100 80GB HBM3'`` to ``'nvidia-h100-80gb-hbm3'``."""
    return re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'unknown'


def _parts(args: argparse.Namespace, deadline: float,
           progress: Progress) -> Iterator[dict[str, dict]]:
    """Yield the record of each suite, then of each search, by its JSON key."""
    for dtype in args.dtypes:
        for name, cases in suites(args.device, dtype, args.tiny).items():
            if name not in args.suites:
                continue
            started = time.monotonic()
            limit = 2**33
            if args.device == 'cuda':
                torch.cuda.empty_cache()
                limit = int(SHARE * torch.cuda.mem_get_info()[0])
            # No memory on a CPU: new processes take longer than a small run.
            records = measure(
                cases, args.repeats, limit, progress,
                memory=args.device == 'cuda', case_seconds=CASE_SECONDS,
                deadline=deadline, keep_going=True)
            yield dict(suites=dict(
                suite=name, dtype=dtype,
                seconds=round(time.monotonic() - started, 1),
                records=records))
    for dtype in reversed(args.dtypes if 'largest' in args.suites else ()):
        yield from _largest(args, dtype, deadline)


def _largest(args: argparse.Namespace, dtype: str,
             deadline: float) -> Iterator[dict[str, dict]]:
    """Search the largest images of one dtype."""
    if time.monotonic() > deadline:
        return
    case = NetworkCase(
        LARGEST, device=args.device, dtype=dtype, names=(LARGEST, ))
    options = dict(probes=(1, 2), longest=0.5) if args.tiny else {}
    search = LargestImage(case, **options)
    for gib in DEVICES[:1] if args.tiny else DEVICES:
        for kind in ('step', 'forward'):
            yield dict(largest_images=search.find(kind, gib, deadline))


def _progress(part: dict[str, dict]) -> Iterator[str]:
    """Yield one line for each suite or search, for a log file."""
    for found in part.values():
        if 'suite' in found:
            yield (f'{found["suite"]} {found["dtype"]}: '
                   f'{found["seconds"]} s')
        else:
            yield (f'largest image {found["dtype"]} {found["kind"]} '
                   f'{found["gib"]} GiB: {found["shape"]}')


def read_tests(path: str | Path) -> dict[str, Any]:
    """Read counts and failures of a run of pytest from its JUnit XML.

    Raises:
        ValueError: The file is not XML.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f'--tests must be a JUnit XML, got {path}: {error}'
                         ) from error
    cases = list(root.iter('testcase'))

    def having(*tags: str) -> list[str]:
        return [f'{case.get("classname")}::{case.get("name")}'
                for case in cases
                if any(case.find(tag) is not None for tag in tags)]

    failures = having('failure', 'error')
    skipped = having('skipped')
    return dict(
        passed=len(cases) - len(failures) - len(skipped),
        skipped=len(skipped), failures=failures,
        seconds=round(sum(float(case.get('time', 0)) for case in cases), 1))


def _failed(content: dict) -> Iterator[str]:
    for suite in content['suites']:
        for record in suite['records']:
            for name, found in record['candidates'].items():
                if 'failed' in found:
                    yield f'{suite["suite"]} {record["case"]} {name}'


# ----------------------------------------------------------------------- table


def markdown(content: dict) -> str:
    """Format the JSON's content as one Markdown document."""
    dtypes = list(dict.fromkeys(s['dtype'] for s in content['suites']))
    lines = [f'# {content["environment"]["device"]}', '']
    lines += [f'- {key}: {_plain(value)}'
              for key, value in content['environment'].items()]
    if content['tests'] is not None:
        tests = content['tests']
        lines += [f'- tests: {tests["passed"]} passed, {tests["skipped"]} '
                  f'skipped, {len(tests["failures"])} failed']
        lines += [f'  - {name}' for name in tests['failures']]
    lines += ['', 'Milliseconds are medians; **bold** is the fastest path of a '
              'case, without `fpt_plugin` and the formulas. Memory is the peak '
              'of the second pass in MiB. The second pass is forward and '
              'backward; for networks it is a training step.', '']
    head = ['suite', 'case', 'candidate']
    for dtype in dtypes:
        head += [f'{dtype} forward', 'with backward', 'MiB', 'error']
    lines += [row(head), row(['---'] * 3 + ['---:'] * (len(head) - 3))]
    for suite, case, rows in _cases(content):
        lines += [row([suite, case, name, *cells])
                  for name, cells in _cells(rows, dtypes)]
    if content['largest_images']:
        lines += ['', '## Largest images', '', row([
            'network', 'pass', 'dtype', 'device memory', 'largest image',
            'peak', 'seconds', 'limited by']),
            row(['---'] * 4 + ['---:'] * 3 + ['---'])]
        lines += [row(_largest_cells(x)) for x in content['largest_images']]
    return '\n'.join(lines) + '\n'


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key} {_plain(x)}' for key, x in value.items())
    return str(value)


def _cases(content: dict) -> Iterator[tuple[str, str, dict[str, dict]]]:
    """Yield suite, case, and the candidates of each dtype."""
    merged: dict[tuple[str, str], dict[str, dict]] = {}
    for suite in content['suites']:
        for record in suite['records']:
            key = suite['suite'], record['case']
            merged.setdefault(key, {})[suite['dtype']] = record['candidates']
    for (suite, case), rows in merged.items():
        yield suite, case, rows


# Candidates that are not paths of a function.
_NO_PATHS = ('fpt_plugin', 'reference', 'conv2d', 'depthwise', 'conv3d',
             'conv3d-v-first')


def _cells(rows: dict[str, dict],
           dtypes: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the cells of each candidate, four for each dtype."""
    names = dict.fromkeys(name for found in rows.values() for name in found)
    for name in names:
        cells = []
        for dtype in dtypes:
            candidates = rows.get(dtype, {})
            found = candidates.get(name, {})
            reason = found.get('failed', found.get('skipped'))
            if reason is not None:
                cells += [reason, '', '', '']
                continue
            second = 'step' if 'step' in found else 'both'
            for kind in ('forward', second):
                cells.append(_time(candidates, name, kind))
            peak = found.get(f'{second}_bytes')
            cells.append('' if peak is None else f'{peak / 2**20:.0f}')
            cells.append(f'{found["error"]:.0e}' if 'error' in found else '')
        yield name, cells


def _time(candidates: dict[str, dict], name: str, kind: str) -> str:
    """Format milliseconds, bold for the fastest path."""
    if kind not in candidates.get(name, {}):
        return ''
    own = candidates[name][kind]['median']
    text = f'{1e3 * own:.3g}'
    paths = [found[kind]['median'] for other, found in candidates.items()
             if other not in _NO_PATHS and kind in found]
    if 'fpt_plugin' in candidates and name not in _NO_PATHS \
            and own == min(paths):
        return f'**{text}**'
    return text


def _largest_cells(found: dict) -> list[str]:
    shape = found['shape']
    limited = found['limited_by']
    if found['too_large'] and limited == 'memory':
        limited += ' ({}x{} does not fit)'.format(*found['too_large'])
    return [
        found['network'],
        dict(step='training step', forward='inference')[found['kind']],
        found['dtype'], f'{found["gib"]} GiB',
        '' if shape is None else f'{shape[0]}x{shape[1]}',
        '' if shape is None else f'{found["peak_bytes"] / 2**30:.1f} GiB',
        '' if shape is None else f'{found["seconds"]:.2g}', limited
    ]
