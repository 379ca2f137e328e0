"""The benchmark's graft-zoo: graft every config that a library ships.

Each config is grafted, its text is parsed again, and both models are built and
compared. Only the results are written. Configs of the same model with different
schedules or data sets share one comparison.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import nn

from ...io.files import check_writable
from ...openmmlab.models import describe, load_config
from ...openmmlab.pins import SCOPES
from ..common import config_folder, positive_int, reporting
from ..console import wide_console
from ..graft.planning import Options, Plan, plan
from ..graft.proof import Parts, Proof, build_pair, compare
from ..graft.sites import Refusal, Unbuildable, find_sites, type_name
from ..graft.text import check_gives, config_text
from ..graft.weights import ZerosForRandom, initialise_grafts

IDENTICAL = 'identical'
DIFFERENT = 'different'
REFUSED = 'refused'
UNBUILDABLE = 'does not build plain'
FAILED = 'failed'
STATUSES = (IDENTICAL, DIFFERENT, REFUSED, UNBUILDABLE, FAILED)

# Settings that do not change the modules under test: weights, training, the
# number of classes, pre- and post-processing.
_NO_PART = ('init_cfg', 'pretrained', 'train_cfg', 'test_cfg',
            'data_preprocessor', 'num_classes', 'num_things_classes',
            'num_stuff_classes', 'frozen_stages', 'norm_eval', 'with_cp',
            'drop_path_rate', 'requires_grad')

# Height and width, as in proof.py except for a smaller first one.
_SIZES = ((64, 96), (128, 128), (256, 256), (512, 512))

# Largest number of candidates in RoI heads and mask decoders.
_CANDIDATES = 20


@dataclass(frozen=True)
class Record:
    """Result of one config.

    Attributes:
        config: Its path in the library's folder of configs.
        status: One of :data:`STATUSES`.
        neck: The original neck, or ``none``.
        reason: The compared parts if identical, else the reason.
        model: Hash of the model's parts; configs with the same hash share a
            result.
        seconds: Duration; 0 for a shared result.
    """

    config: str
    status: str
    neck: str
    reason: str
    model: str
    seconds: float


def shipped_configs(folder: Path) -> list[str]:
    """List the paths of all configs, except those in ``_base_``."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob('*.py')
        if '_base_' not in path.parts)


def try_config(folder: Path, name: str, known: Mapping[str, Record],
               options: Options = Options()) -> Record:
    """Graft one config and prove that the models are identical.

    Args:
        folder: Folder of the library's configs.
        name: Path of the config in the folder.
        known: Records by their model hash.
        options: Options of the graft.
    """
    started = time.perf_counter()
    neck, model = 'none', ''

    def record(status: str, reason: str) -> Record:
        return Record(name, status, neck, reason, model,
                      round(time.perf_counter() - started, 2))

    try:
        cfg = load_config(folder / name)
    except ValueError as error:
        return record(REFUSED, str(error).partition(', got')[0])
    except FileNotFoundError as error:
        missing = str(error.filename or error)
        return record(UNBUILDABLE, 'a file is missing: '
                      f'{missing.replace(f"{folder}/", "")}')
    # A config may run any code, such as imports of missing packages.
    except Exception as error:
        return record(UNBUILDABLE, describe(error))
    neck = _neck_of(cfg)
    model = _signature(cfg)
    if model in known:
        before = known[model]
        return Record(name, before.status, neck, before.reason, model, 0.)
    _lighten(cfg.model)
    made = None
    try:
        with ZerosForRandom():
            made = plan(cfg, options)
        text = config_text(cfg, made.cfg, str(folder / name))
        fresh = Config.fromstring(text, '.py')
        _lighten(fresh.model)
        check_gives(fresh, made.cfg)
        with ZerosForRandom():
            models = build_pair(cfg, made.cfg)
        proof = _compared(*models)
    except Refusal as error:
        return record(REFUSED, str(error))
    except Unbuildable as error:
        return record(UNBUILDABLE, str(error) + _parts_of(cfg, made))
    except Exception as error:  # any other error is a failure of the graft
        return record(FAILED, describe(error))
    if not proof.identical:
        different = [c.what for c in proof.comparisons if not c.equal]
        return record(DIFFERENT if different else FAILED,
                      ', '.join(different) or 'nothing could differ')
    if proof.effective is False:
        return record(REFUSED, 'no head reads the transformed maps')
    if not proof.heads_compared:
        return record(IDENTICAL, f'neck only; {"; ".join(proof.notes)}')
    return record(IDENTICAL, 'neck and heads' + (
        ', which read the graft' if proof.effective else ''))


def _compared(before: nn.Module, after: nn.Module) -> Proof:
    initialise_grafts(after)
    return compare(before, after, sizes=_SIZES)


def _parts_of(cfg: Config, made: Plan | None) -> str:
    """Compare backbone and neck when the heads cannot be built."""
    if made is None:
        return ''
    new = {site.path: site for site in find_sites(made.cfg.model,
                                                  cfg.default_scope)}
    grafted = {site.path for site in made.sites}
    found = []
    for site in find_sites(cfg.model, cfg.default_scope):
        if site.path not in grafted:
            continue
        try:
            with ZerosForRandom():
                models = Parts(site), Parts(new[site.path])
            proof = _compared(*models)
        except (RuntimeError, ValueError) as error:
            return f'; its neck does not run either: {describe(error)}'
        found.append(proof.identical)
    return ('; backbone and neck are identical'
            if found and all(found) else '; its neck is DIFFERENT')


def _neck_of(cfg: Config) -> str:
    sites = find_sites(cfg.model, cfg.default_scope)
    necks = dict.fromkeys(
        type_name(site.cfg['neck']) for site in sites if site.has_neck)
    return ' and '.join(necks) or 'none'


def _signature(cfg: Config) -> str:
    """Hash the parts of a model, without settings that only affect training."""

    def stripped(node: object) -> object:
        if isinstance(node, Mapping):
            return {str(key): stripped(value) for key, value in node.items()
                    if key not in _NO_PART and not str(key).startswith('loss')}
        if isinstance(node, (list, tuple)):
            return [stripped(value) for value in node]
        return node if isinstance(node, (int, float, bool)) else str(node)

    content = dict(model=stripped(cfg.to_dict()['model']),
                   scope=cfg.default_scope)
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lighten(node: object) -> None:
    """Limit the numbers of candidates in every test_cfg, in place."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ('max_per_img', 'nms_pre') and type(value) is int:
                node[key] = min(value, _CANDIDATES) if value > 0 else value
            else:
                _lighten(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _lighten(value)


def sweep(library: str,
          out: str | Path | None = None,
          limit: int | None = None,
          resume: bool = False,
          force: bool = False,
          only: str | None = None,
          options: Options = Options(),
          console: Console | None = None) -> list[Record]:
    """Graft every config that a library ships.

    Args:
        library: ``mmdet`` or ``mmseg``.
        out: File of JSON lines, one per config, written immediately.
        limit: Maximum number of configs.
        resume: Keep the records in ``out`` and continue.
        force: Overwrite ``out``.
        only: Use only configs whose path contains this text.
        options: Options of the graft.
        console: Console of the progress bar.

    Raises:
        OSError: ``out`` cannot be written, or exists already.
        ValueError: The library is unknown, or ``out`` is another file.
    """
    if library not in SCOPES:
        raise ValueError(f'library must be one of {SCOPES}, got {library!r}')
    folder = config_folder(library)
    names = [n for n in shipped_configs(folder) if only is None or only in n]
    names = names[:limit]
    done = _read(out, resume, force)
    known = {r.model: r for r in done.values() if r.model}
    records = []
    with Progress(
            TextColumn('{task.description}'), BarColumn(),
            MofNCompleteColumn(), TimeRemainingColumn(),
            console=console) as progress, _Lines(out) as lines:
        task = progress.add_task(library, total=len(names))
        for name in names:
            progress.update(task, description=name[:60])
            record = done.get(name)
            if record is None:
                record = try_config(folder, name, known, options)
                lines.write(record)
                gc.collect()  # models have reference cycles
            if record.model:
                known.setdefault(record.model, record)
            records.append(record)
            progress.advance(task)
    return records


def _read(out: str | Path | None, resume: bool,
          force: bool) -> dict[str, Record]:
    if out is None or not Path(out).exists():
        return {}
    if not resume:
        check_writable(out, force=force, flag='--resume continues it, --force')
        Path(out).unlink()
        return {}
    found = {}
    lines = Path(out).read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if not line.endswith('\n'):  # incomplete: the process was killed
            Path(out).write_text(''.join(lines[:number]))
            break
        try:
            record = Record(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{out} is not a file of graft-zoo: line {number + 1} '
                             f'({describe(error)})') from error
        found[record.config] = record
    return found


class _Lines:
    """Append records to a file; does nothing without a file."""

    def __init__(self, out: str | Path | None) -> None:
        self.out = None if out is None else Path(out)
        self.file = None

    def __enter__(self) -> _Lines:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.out.open('a')
        return self

    def __exit__(self, *exception) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, record: Record) -> None:
        """Write one line and flush it."""
        if self.file is not None:
            self.file.write(json.dumps(asdict(record)) + '\n')
            self.file.flush()


def summary(library: str, records: list[Record]) -> Table:
    """Format a table of necks (rows) and statuses of their configs (columns)."""
    built = {r.model for r in records if r.status in (IDENTICAL, DIFFERENT)}
    necks: dict[str, Counter] = {}
    for record in sorted(records, key=lambda r: r.neck):
        necks.setdefault(record.neck, Counter())[record.status] += 1
    table = Table(
        title=f'{len(records)} configs of {library}',
        caption='\n'.join([
            f'Compared: {len(built)} distinct models.', *reasons(records)]),
        caption_justify='left')
    table.add_column('neck')
    for status in STATUSES:
        table.add_column(status, justify='right')
    rows = sorted(necks.items(), key=lambda item: -sum(item[1].values()))
    for neck, counts in rows:
        table.add_row(neck, *_numbers(counts))
    table.add_section()
    table.add_row('all', *_numbers(Counter(r.status for r in records)))
    return table


def _numbers(counts: Counter) -> Iterator[str]:
    return (str(counts[status] or '') for status in STATUSES)


def reasons(records: list[Record]) -> list[str]:
    """List the reasons, each with the number of configs and an example."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        found.setdefault((record.status, record.reason), []).append(
            record.config)
    ordered = sorted(found.items(),
                     key=lambda item: (STATUSES.index(item[0][0]),
                                       -len(item[1])))
    return [f'{len(configs)} {status}: {reason} ({configs[0]}'
            f'{", ..." if len(configs) > 1 else ""})'
            for (status, reason), configs in ordered]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add graft-zoo to the benchmark's subcommands."""
    text = 'graft every config of a library, and compare the models'
    parser = commands.add_parser('graft-zoo', help=text, description=text)
    parser.add_argument('library', choices=SCOPES)
    parser.add_argument('--out', help='file of JSON lines, one per config')
    parser.add_argument(
        '--limit', type=positive_int, metavar='N', help='the first N configs')
    parser.add_argument(
        '--only', metavar='TEXT', help='configs whose path contains TEXT')
    parser.add_argument(
        '--resume', action='store_true', help='continue an existing --out')
    parser.add_argument(
        '--force', action='store_true', help='overwrite an existing --out')


def main(args: argparse.Namespace) -> list[Record]:
    """Graft the configs and print the summary.

    Raises:
        SystemExit: The file exists already, or the user interrupts.
    """
    console = wide_console()
    try:
        with reporting('graft-zoo', ImportError, OSError, ValueError):
            records = sweep(args.library, args.out, args.limit, args.resume,
                            args.force, args.only, console=console)
    except KeyboardInterrupt:
        sys.exit('graft-zoo interrupted; continue with --resume')
    console.print(summary(args.library, records))
    return records
