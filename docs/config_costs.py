"""Count the costs of the shipped configs: ``benchmarks/config-costs.json``.

    python docs/config_costs.py [CONFIG ...]   # count all, or some, and write

Counting all takes minutes. ``docs/tables.py`` makes the tables of the READMEs from
the file. A slow test counts again and compares.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / 'benchmarks' / 'config-costs.json'
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

# The part of a model that has its own column.
PARTS = dict(fpt='fpt', lambda_resnet='backbone', pretraining='backbone')
# Image sizes that differ from the usual ones of the data.
SHAPES = {
    'fpt/mask-rcnn_vit-b16_fpt_8xb8-amp-lsj-100e_coco.py': (1024, 1024),
    'fpt/mask-rcnn_deit-s16_fpt_8xb8-amp-lsj-100e_coco.py': (1024, 1024),
}
# Configs without a model to compare with.
WITHOUT_OTHER = ('fpt/faster-rcnn_r50_fpt_finetune-4e_coco.py',
         'fpt/faster-rcnn_r50_fpt-frozen_finetune-4e_coco.py',
         'fpt/fcn_r101-d8_ufp-fpt_4xb4-160k_lip-473x473.py')


def names() -> list[str]:
    """Return the names of the configs whose costs are recorded."""
    from helpers.shipped_configs import ALL, folder
    return [name for name in ALL if folder(name) in PARTS and (
        folder(name) != 'pretraining' or 'mim_' in name and '8xb' in name)]


def count(name: str) -> dict[str, dict]:
    """Count a config, and the model that it is compared with.

    Args:
        name: FOLDER/CONFIG.py below ``configs``.

    Returns:
        ``own`` and, if there is a model to compare with, ``other``. Each has the
        parameters, the multiply-adds of the model and of the folder's part, and the
        bytes that one image saves for the backward pass, of the neck and of all.
    """
    from helpers.shipped_configs import (
        CONFIGS,
        folder,
        host_has,
        host_of,
        load,
        without_fpt,
    )
    part, shape = PARTS[folder(name)], SHAPES.get(name)
    if folder(name) == 'pretraining':
        size = int(Path(name).stem.rpartition('_')[2])
        shape = (size, size)
    own = _counted(str(CONFIGS / name), part, shape)
    if name in WITHOUT_OTHER or '_bup' in name or 'fpt-paper' in name:
        return dict(own=own)
    if folder(name) == 'pretraining':
        return dict(own=own) if 'simmim' in name else dict(
            own=own, other=_counted(str(CONFIGS / name), part, shape,
                                    (('model.type', 'SimMIM'), )))
    if not host_has(name):
        return dict(own=own, other=_counted(without_fpt(name), part, shape))
    # Set the depth of the library's ResNet to that of the config.
    depth = load(name).model.backbone.get('depth')
    options = () if depth is None else ((
        'model.backbone.depth', depth if isinstance(depth, int) else 50), )
    return dict(own=own, other=_counted(host_of(name), part, shape, options))


@cache  # several configs are compared with the same model
def _counted(config, part: str, shape: tuple[int, int] | None,
             options: tuple = ()) -> dict:
    from fpt_plugin.commands.complexity.command import complexity
    result = complexity(config, shape, cfg_options=dict(options))
    if not result.complete:
        raise RuntimeError(f'{config}: {result.notes}')
    neck = [p for p in result.parts if p.name in ('pyramid', 'fpt')]
    return dict(
        parameters=result.total.parameters,
        macs=result.total.macs,
        part_macs=sum(p.macs for p in result.parts if p.name == part),
        neck_bytes=sum(p.saved_bytes for p in neck),
        bytes=result.total.saved_bytes)


def main() -> None:
    """Count and write the file."""
    from fpt_plugin.io.files import write_json
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='*', help='FOLDER/CONFIG.py; default: all')
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for name in args.configs or names():
        record[name] = count(name)
        print(name, flush=True)
    known = set(names())
    write_json(RECORD, {name: record[name] for name in sorted(known & set(record))})


if __name__ == '__main__':
    main()
