"""Check the data of a config; the doctor runs this module in its own process.

    python -m fpt_plugin.commands.doctor.data_probe OUT CONFIG [--cfg-options ...]

It writes the findings to OUT as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, DefaultScope

from ...engine.data_checks import check_model_classes, inspect_data
from ...engine.label_check import check_one_channel
from ...openmmlab.models import build_model, describe, load_config
from ...openmmlab.pins import SCOPES
from .checks import FAIL, OK, WARN, Finding

SPLITS = ('train', 'val', 'test')


def examine(cfg: Config) -> Iterator[Finding]:
    """Check the files of a config, its heads, and a few loaded samples."""
    splits = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    failed = set()
    for problem in inspect_data(cfg, *splits):
        yield Finding(problem.where, FAIL if problem.fatal else WARN, problem.text)
        if problem.fatal:
            failed.add(problem.where.partition('_')[0])
    if cfg.default_scope in SCOPES:  # other scopes train without labels
        yield from _heads(cfg, splits)
    for split in splits:
        if split not in failed:
            yield _loaded(cfg, split)


def _heads(cfg: Config, splits: list[str]) -> Iterator[Finding]:
    try:
        with torch.device('meta'):
            model = build_model(cfg)
    except Exception as error:  # third-party code may raise anything
        yield Finding('model', WARN, 'cannot be built, so its classes are not '
                      f'checked: {describe(error)}')
        return
    try:
        check_model_classes(model, cfg, *splits)
        for module in model.modules():
            check_one_channel(module)
    except ValueError as error:
        for line in str(error).splitlines():
            yield Finding('model', FAIL, line)
    else:
        yield Finding('model', OK, 'num_classes of its heads fits the data')


def _loaded(cfg: Config, split: str) -> Finding:
    """Build a dataset as the runner does, and load some of its samples."""
    name = f'{split}_dataloader'
    settings = cfg[name].get('dataset')
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(settings) if isinstance(settings, dict) \
                else settings
            count = len(dataset)
            for index in sorted({0, count // 2, count - 1}):
                dataset[index]
    except Exception as error:
        return Finding(name, FAIL, f'{type(error).__name__}: {error}')
    return Finding(name, OK, f'{count} samples; the first, the middle and the last '
                   'one can be loaded')


def main() -> None:
    """Write the findings on a config."""
    parser = argparse.ArgumentParser()
    parser.add_argument('out')
    parser.add_argument('config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    try:
        cfg = load_config(args.config, args.cfg_options)
    except (OSError, SyntaxError, ValueError) as error:
        sys.exit(str(error))
    found = [vars(finding) for finding in examine(cfg)]
    Path(args.out).write_text(json.dumps(found), encoding='utf-8')


if __name__ == '__main__':
    main()
