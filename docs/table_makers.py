"""Make each table; see ``tables.py``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from functools import cache
from math import log2
from pathlib import Path
from statistics import mean

import yaml
from config_costs import RECORD
from tables import ROOT, table

sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
BENCHMARKS = ROOT / 'benchmarks'
SEEDS = 3  # number of seeds of a finished row
NOT_FINISHED = 'not finished'
LEVELS = ((200, 336), (100, 168), (50, 84), (25, 42), (13, 21))  # of 800x1344
BRANCHES = dict(ST='Self-Transformer', GT='Grounding Transformers',
                RT='Rendering Transformers', fusion='fusion')
PRESETS = dict(light='ST', default='P2: ST; P3 to P5: all', full='all',
               paper='all, without pooling of keys')


def make(call: str) -> str:
    """Return the table that a marker names.

    Raises:
        ValueError: There is no such table.
    """
    name, *arguments = call.split()
    if name not in MAKERS:
        raise ValueError(f'tables are {sorted(MAKERS)}, got {name!r}')
    return MAKERS[name](*arguments)


def read(path: Path) -> dict:
    """Return a JSON."""
    return json.loads(path.read_text(encoding='utf-8'))


# ------------------------------------------------------------------ counted here


@cache
def _counted(preset: str):
    from fpt_plugin import FPT
    from fpt_plugin.commands.complexity.command import neck_complexity
    neck = FPT([256, 512, 1024, 2048], 256, num_outs=5, preset=preset)
    return neck.embed_channels, neck_complexity(
        neck, [(c, *s) for c, s in zip((256, 512, 1024, 2048), LEVELS)])


def presets() -> str:
    """Return width, parameters and multiply-adds of each preset, by level."""
    rows = []
    for preset, branches in PRESETS.items():
        width, result = _counted(preset)
        levels = [sum(b.macs for b in result.branches if b.level == level)
                  for level in range(4)]
        fpt = result.part('fpt')
        rows.append([f'`{preset}`', branches, width, f'{fpt.parameters / 1e6:.1f}',
                     *(f'{x / 1e9:.1f}' for x in levels),
                     f'**{fpt.macs / 1e9:.1f}**'])
    return table(['preset', 'branches', 'width', 'parameters', 'P2', 'P3', 'P4',
                  'P5', 'all'], rows)


def presets_short() -> str:
    """Return parameters and multiply-adds of each preset."""
    return table(['preset', 'branches', 'parameters', 'GMACs'], [
        [f'`{preset}`', branches, f'{fpt.parameters / 1e6:.1f}',
         f'{fpt.macs / 1e9:.1f}'] for preset, branches in PRESETS.items()
        for fpt in [_counted(preset)[1].part('fpt')]])


def preset_branches(preset: str) -> str:
    """Return multiply-adds of a preset, by branch."""
    branches = _counted(preset)[1].branches
    rows = []
    for short, name in [*BRANCHES.items(), (None, '**all**')]:
        macs = [sum(b.macs for b in branches if b.level == level
                    and short in (None, b.name)) / 1e9 for level in range(4)]
        total = f'{sum(macs):.1f}'
        rows.append([name, *(f'{x:.1f}' if x else '' for x in macs),
                     total if short else f'**{total}**'])
    return table([f'preset `{preset}`', 'P2', 'P3', 'P4', 'P5', 'all'], rows)


# ----------------------------------------------------------- costs of the configs


def config_costs(name: str) -> str:
    """Return costs of shipped configs: table ``name`` of config_tables.yml."""
    spec = yaml.safe_load((ROOT / 'docs' / 'config_tables.yml').read_text())[name]
    folder, extra = spec['folder'], spec.get('columns', [])
    own, other = COST_CELLS[folder]
    rows = []
    for row in spec['rows']:
        pattern, cells = row if isinstance(row, list) else (row, [])
        found = [_recorded(folder, config) for config in expand(pattern)]
        costs = {(own(x), 'other' in spec and other(x)) for x in found}
        if len(costs) != 1:
            raise ValueError(f'{pattern}: the configs of a row must have equal costs')
        (own_cells, other_cells), = costs
        rows.append([f'`{pattern}`', *[cells] * bool(extra), *own_cells,
                     *[other_cells] * ('other' in spec),
                     spec.get('trained', {}).get(pattern, 'never')])
    heads = dict(fpt=['parameters', 'GMACs', 'FPT GMACs', 'GiB: neck, all'],
                 lambda_resnet=['parameters', 'GMACs', 'backbone GMACs'],
                 pretraining=['GMACs', 'saved (MiB)'])[folder]
    return table(['config', *extra, *heads, *[spec.get('other')] * ('other' in spec),
                  'trained here'], rows)


def expand(pattern: str) -> list[str]:
    """Expand ``a_{b,c}_d`` to a_b_d and a_c_d."""
    head, *options = re.split(r'\{(.*)\}', pattern)
    return [head + option + (options[1] if options else '')
            for option in (options[0].split(',') if options else [''])]


def _recorded(folder: str, config: str) -> dict:
    record = read(RECORD)
    name = f'{folder}/{config}.py'
    if name not in record and folder != 'pretraining':
        raise ValueError(f'{RECORD.name} has no {name}: run python '
                         f'docs/config_costs.py {name}')
    return record.get(name, {})


def _millions(costs: dict) -> str:
    return f'{costs["parameters"] / 1e6:.1f}'


def _giga(costs: dict, key: str = 'macs') -> str:
    return f'{costs[key] / 1e9:.0f}'


def _gib(costs: dict, key: str = 'bytes') -> str:
    return f'{costs[key] / 2**30:.2f}'


def _fpt(costs: dict) -> tuple[str, ...]:
    own = costs['own']
    return (_millions(own), _giga(own), _giga(own, 'part_macs'),
            f'{_gib(own, "neck_bytes")}, {_gib(own)}')


def _without_fpt(costs: dict) -> str:
    other = costs.get('other')
    return f'{_millions(other)}, {_giga(other)}, {_gib(other)}' if other else ''


def _lambda(costs: dict) -> tuple[str, ...]:
    own = costs['own']
    return _millions(own), _giga(own), _giga(own, 'part_macs')


def _without_lambda(costs: dict) -> str:
    return ', '.join(_lambda(dict(own=costs['other'])))


def _images(costs: dict, key: str = 'own') -> tuple[str, ...]:
    if key not in costs:
        return '', ''
    return (f'{costs[key]["macs"] / 1e9:.1f}', f'{costs[key]["bytes"] / 2**20:.0f}')


COST_CELLS = dict(
    fpt=(_fpt, _without_fpt), lambda_resnet=(_lambda, _without_lambda),
    pretraining=(_images, lambda costs: ', '.join(_images(costs, 'other')).strip(', ')))


def backbones() -> str:
    """Return the costs of FPT over backbones of both libraries."""
    spec = yaml.safe_load((ROOT / 'docs' / 'config_tables.yml').read_text())
    rows = []
    for backbone, host, head, config in spec['backbones']['rows']:
        costs = _recorded('fpt', config)
        own, link = costs['own'], f'../configs/fpt/{config}.py'
        rows.append([
            backbone, host, head, _without_fpt(costs),
            f'[{_millions(own)}, {_giga(own)}, {_gib(own)}]({link})',
            f'{_giga(own, "part_macs")}; {_gib(own, "neck_bytes")}'])
    return table(['backbone', 'library', 'head', 'without FPT', 'with FPT',
                  'FPT; neck'], rows)


# ---------------------------------------------------------------------- measured


def ratios(name: str, ours: str = 'fpt_plugin') -> str:
    """Return speedups over the other candidates, and ratios of memory."""
    records = [r for path in name.split('+')
               for r in read(BENCHMARKS / f'{path}-cpu-float32.json')['records']]
    others = list(dict.fromkeys(
        other for r in records for other in r['candidates']
        if other not in (ours, *OWN_PATHS)))
    rows = []
    for record in records:
        own, cells = record['candidates'][ours], []
        for other in others:
            found = record['candidates'].get(other, {})
            cells.append(', '.join([
                *(_times(found[kind]['median'] / own[kind]['median'])
                  for kind in ('forward', 'both')),
                f'{own["both_bytes"] / found["both_bytes"]:.2f}'
            ]) if 'both' in found else '')
        rows.append([_case(record), f'{own["both"]["median"] * 1e3:.0f} ms', *cells])
    return table(['case', 'forward and backward',
                  *(f'over {LABELS.get(o, o)}' for o in others)], rows)


OWN_PATHS = ('attention', 'lambda', 'fft')
LABELS = dict(reference='the plain formula', sdpa='one SDPA call for each part',
              depthwise='depthwise conv2d')


def benchmark(name: str) -> str:
    """Return the tables of ``benchmark NAME``, such as pretraining."""
    from fpt_plugin.commands.benchmark.command import TABLES
    content = read(BENCHMARKS / f'{name}-cpu-float32.json')
    return TABLES[content['command']](content).rstrip()


def _times(ratio: float) -> str:
    return f'{ratio:.1f}x' if ratio < 10 else f'{ratio:.0f}x'


def _case(record: dict) -> str:
    case = record['case']
    if 'heads' in record:
        size = 'x'.join(map(str, record['size']))
        return f'{size}, values of {record["channels"]}'
    if 'image' in record:
        sizes = ('x'.join(map(str, record[key])) for key in ('image', 'reference'))
        return ', reference of '.join(sizes)
    if 'coarse' in record:
        return f'LGT, {case}, window {record["window"]}'
    branch, _, levels = case.partition(':')
    return f'{branch.upper()}, ' + levels.replace('-', ' from ').replace(
        '@', ', keys pooled by ')


def study(name: str) -> str:
    """Return all rows of a study."""
    from fpt_plugin.commands.study.table import markdown
    shown, rows = _study(name)
    if not rows:
        return f'{shown.title}\n\n*Not finished: no run is complete yet.*'
    return f'{markdown(shown, rows)}\n\n{_unfinished(shown, rows)}'.rstrip()


def study_short(name: str, *names: str) -> str:
    """Return metric and cost of some rows of a study."""
    shown, rows = _study(name)
    found = {row.name: row for row in rows}
    cells = []
    for row in names:
        if row not in found:
            cells.append([f'`{row}`', NOT_FINISHED, '', ''])
            continue
        figures = [x * shown.factor for x in found[row].figures('report')]
        run = next(iter(found[row].runs.values()))
        spread = f' ({min(figures):.1f} to {max(figures):.1f})' * (len(figures) > 1)
        count = f'{len(figures)} of {SEEDS}, not finished' if len(
            figures) < SEEDS else len(figures)
        cells.append([f'`{row}`', f'{mean(figures):.1f}{spread}', count,
                      f'{run["macs"] / 1e9:.2f}'])
    return table([shown.title, 'mean (range)', 'seeds', 'GMACs of the model'], cells)


def study_gains(*names: str) -> str:
    """Return the baseline and the gains of the presets, one study per row."""
    from fpt_plugin.commands.study.table import interval
    presets, cells = ('light', 'default', 'full'), []
    for name in names:
        shown, rows = _study(name)
        found = {row.name: row for row in rows}
        base = found.get(shown.baseline)
        line = [shown.title, NOT_FINISHED]
        if base is not None and len(base.runs) >= SEEDS:
            line[1] = f'{mean(base.figures("report")) * shown.factor:.2f}'
        for preset in presets:
            row = found.get(preset)
            if preset not in shown.rows:
                line.append('')
            elif row is None or len(row.gains) < SEEDS:
                line.append(NOT_FINISHED)
            else:
                gain, half = mean(row.gains), interval(row.gains)
                line.append(f'{gain * shown.factor:+.2f} ± '
                            f'{half * shown.factor:.2f}')
        cells.append(line)
    return table(['', 'baseline', *(f'`{preset}`' for preset in presets)], cells)


@cache
def _study(name: str):
    from fpt_plugin.commands.study.running import Study
    from fpt_plugin.commands.study.table import read_rows
    shown = Study.load(str(ROOT / 'configs' / 'studies' / f'{name}.py'))
    return shown, read_rows(shown, BENCHMARKS / 'studies' / name)


def _unfinished(shown, rows: Iterable) -> str:
    seeds = {row.name: len(row.runs) for row in rows}
    missing = [f'{name} ({seeds.get(name, 0)} of {SEEDS} seeds)'
               for name in shown.rows if seeds.get(name, 0) < SEEDS]
    return f'*Not finished: {", ".join(missing)}.*' if missing else ''


def tried(task: str) -> str:
    """Return the experiments that led to the presets."""
    figures = dict(camvid=('held_out', 'val'))[task]
    rows = []
    for row in read(BENCHMARKS / 'studies' / 'tried.json')['rows']:
        if row['task'] == task:
            rate = row['lr_factor']
            rows.append([
                row['branches'], row['fusion'] or '', '' if rate == 1 else rate,
                row['optimizer'], len(row['seeds']),
                *(f'{mean(s[f] for s in row["seeds"].values()):.1f}'
                  for f in figures)])
    return table(['neck', 'fusion', 'learning rate of FPT', 'optimiser', 'seeds',
                  'held out', 'val'], sorted(rows, key=lambda row: row[3]))


PIXEL_GPT = BENCHMARKS / 'studies' / 'pixel-gpt'


def bits_per_pixel(data: str) -> str:
    """What a pixel costs a PixelGPT, and counts of colours."""
    result = read(PIXEL_GPT / f'bits-{data}.json')
    rows = [[f'without any knowledge: log2 of {result["colours"]}',
             f'{log2(result["colours"]):.2f}', '']]
    rows += [[row['what'], f'{row["bits_per_pixel"]:.2f}', row.get('images', '')]
             for row in result['rows']]
    return table(['', 'bits per pixel', 'crops seen or counted'], rows)


def probe(data: str) -> str:
    """What linear classifiers make of the layers of a PixelGPT."""
    from fpt_plugin.commands.probe.report import header, table_rows
    result = read(PIXEL_GPT / f'probe-{data}.json')
    return table(header(result), table_rows(result))


RESTORED = ('noise30', 'noise50', 'rain', 'sr2')


def restored(name: str) -> str:
    """Return PSNR and SSIM of restored photographs.

    Of one model for all tasks, and of a model for each task.
    """
    runs = read(BENCHMARKS / 'studies' / 'ipt' / f'{name}.json')['runs']
    rows = []
    for task in RESTORED:
        rows.append([f'`{task}`', *(
            _psnr_and_ssim(runs.get(run, {}), task, metric) for run, metric in (
                ('all', 'PSNR_input'), ('all', 'PSNR_nl_means'), ('all', 'PSNR'),
                (task, 'PSNR')))])
    return table(['task', 'nothing, or bicubic', 'non-local means', 'one model for all',
                  'a model of this task'], rows)


def _psnr_and_ssim(metrics: dict, task: str, name: str) -> str:
    pair = [metrics.get(f'{task}/{name.replace("PSNR", kind)}')
            for kind in ('PSNR', 'SSIM')]
    return '' if None in pair else f'{pair[0]:.2f} dB, {pair[1]:.3f}'


# ------------------------------------------------------------------ from the code


def commands() -> str:
    """Return the commands and their descriptions."""
    from fpt_plugin.commands import COMMANDS
    return table(['command', 'description'], [
        [f'`{name}`', command.summary] for name, command in COMMANDS.items()])


def versions() -> str:
    """Return the accepted and the tested versions."""
    from fpt_plugin.openmmlab.pins import LIBRARIES, REQUIREMENTS
    rows = [[library, f'{low} to {high}, excluded', *(
        f'`{REQUIREMENTS[stack][library]}`' for stack in REQUIREMENTS)]
        for library, (_, low, high) in LIBRARIES.items()]
    return table(['', 'accepted', 'tested: stock', 'tested: fork'], rows)


def random_cases() -> str:
    """Return the numbers of random cases in the tests."""
    from helpers.fuzz_cases import CASES
    return table(['random cases of', 'suite', 'heavy cases'], [
        [name.replace('_', ' '), f'{usual:,}', f'{long:,}']
        for name, (usual, long) in CASES.items()] + [
        ['**all**', *(f'**{sum(c):,}**' for c in zip(*CASES.values()))]])


def api(*subpackages: str) -> str:
    """Return the public names of subpackages, for mkdocstrings."""
    import fpt_plugin
    lines = [f'::: fpt_plugin.{name}\n' for name in fpt_plugin.__all__
             if subpackage(name) in subpackages]
    return '\n' + '\n'.join(lines)


def subpackage(name: str) -> str:
    """Return the subpackage that defines a public name."""
    import fpt_plugin
    module = getattr(getattr(fpt_plugin, name), '__module__', '')
    return module.partition('.')[2].partition('.')[0]


MAKERS = {
    'api': api,
    'presets': presets,
    'presets-short': presets_short,
    'preset-branches': preset_branches,
    'config-costs': config_costs,
    'backbones': backbones,
    'ratios': ratios,
    'benchmark': benchmark,
    'study': study,
    'study-short': study_short,
    'study-gains': study_gains,
    'tried': tried,
    'bits-per-pixel': bits_per_pixel,
    'probe': probe,
    'restored': restored,
    'commands': commands,
    'versions': versions,
    'random-cases': random_cases,
}
