"""A graft tried on configs that the libraries ship."""

from __future__ import annotations

import json

import pytest
from helpers.graft_detectors import FPN, NECKS, retinanet, write
from rich.console import Console

from fpt_plugin.commands.benchmark import graft_zoo
from fpt_plugin.commands.benchmark.command import main, parser
from fpt_plugin.commands.benchmark.graft_zoo import (
    DIFFERENT,
    FAILED,
    IDENTICAL,
    REFUSED,
    UNBUILDABLE,
    Record,
    shipped_configs,
    summary,
    sweep,
    try_config,
)
from fpt_plugin.commands.common import config_folder

# One of each kind of neck that is cheap enough, of both libraries.
SHIPPED = {
    ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py'): IDENTICAL,
    ('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py'): IDENTICAL,
    ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py'): IDENTICAL,
    ('mmdet', 'pafpn/faster-rcnn_r50_pafpn_1x_coco.py'): IDENTICAL,
    ('mmdet', 'libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py'): IDENTICAL,
    ('mmdet', 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'):
        IDENTICAL,
    ('mmdet', 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py'): REFUSED,
    ('mmdet', 'common/ms_3x_coco.py'): REFUSED,
    ('mmseg', 'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py'): IDENTICAL,
    ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'): REFUSED,
}


@pytest.mark.parametrize('library, name', SHIPPED)
def test_shipped_configs(library, name):
    record = try_config(config_folder(library), name, {})
    assert record.status == SHIPPED[library, name], record.reason
    if record.status == IDENTICAL:
        assert record.reason == 'neck and heads, which read the graft'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A library's configs: two that share a model, and what goes wrong."""
    root = tmp_path / 'configs'
    write(retinanet(FPN), root / '_base_' / 'models.py')
    write(retinanet(FPN), root / 'a' / 'one.py')
    again = retinanet(FPN)
    again.model.bbox_head.num_classes = 5
    write(again, root / 'a' / 'two.py')
    write(retinanet(NECKS['PAFPN']), root / 'b.py')
    needy = retinanet(FPN)
    needy.custom_imports = dict(
        imports=['package_of_nobody'], allow_failed_imports=False)
    write(needy, root / 'c.py')
    lost = retinanet(FPN)
    lost.model.bbox_head.type = 'HeadOfNobody'
    write(lost, root / 'd.py')
    write(retinanet(None), root / 'e.py')
    monkeypatch.setattr(graft_zoo, 'config_folder', lambda library: root)
    return root


def statuses(records):
    return [record.status for record in records]


ALL = [IDENTICAL, IDENTICAL, IDENTICAL, UNBUILDABLE, UNBUILDABLE, REFUSED]


def test_every_config_is_counted(folder, tmp_path):
    assert shipped_configs(folder) == [
        'a/one.py', 'a/two.py', 'b.py', 'c.py', 'd.py', 'e.py']
    out = tmp_path / 'results' / 'all.jsonl'
    console = Console(quiet=True)
    records = sweep('mmdet', out, console=console)
    assert statuses(records) == ALL
    assert records[0].model == records[1].model != records[2].model
    assert records[0].seconds > 0 == records[1].seconds
    assert [json.loads(line)['config'] for line in
            out.read_text().splitlines()] == shipped_configs(folder)
    with pytest.raises(FileExistsError, match='--resume'):
        sweep('mmdet', out, console=console)

    assert records[4].reason.endswith('backbone and neck are identical')

    printed = Console(width=160, record=True, quiet=False, file=open(
        tmp_path / 'table.txt', 'w'))
    printed.print(summary('mmdet', records))
    text = printed.export_text()
    assert '6 configs of mmdet' in text and '2 distinct models' in text
    assert 'HeadOfNobody' in text and 'package_of_nobody' in text


def test_an_interrupted_sweep_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / 'all.jsonl'
    console = Console(quiet=True)
    sweep('mmdet', out, limit=1, console=console)
    with out.open('a') as file:
        file.write('{"config": "a/two.py", "sta')  # killed here
    tried = []
    original = graft_zoo.try_config

    def counted(folder, name, known, options):
        tried.append(name)
        return original(folder, name, known, options)

    monkeypatch.setattr(graft_zoo, 'try_config', counted)
    records = sweep('mmdet', out, resume=True, console=console)
    assert statuses(records) == ALL
    assert tried == ['a/two.py', 'b.py', 'c.py', 'd.py', 'e.py']
    assert records[1].seconds == 0.  # the model was known from the file
    assert len(out.read_text().splitlines()) == 6
    out.write_text('[1, 2]\n')
    with pytest.raises(ValueError, match='line 1'):
        sweep('mmdet', out, resume=True, console=console)


def test_differences_and_failures_are_found(folder, monkeypatch):
    from fpt_plugin.necks.fusion import ResidualFusion
    monkeypatch.setattr(
        ResidualFusion, 'forward', lambda self, x, branches: x + 1e-6)
    record = try_config(folder, 'b.py', {})
    assert record.status == DIFFERENT and 'neck' in record.reason
    record = try_config(folder, 'd.py', {})
    assert record.status == UNBUILDABLE and 'DIFFERENT' in record.reason

    def broken(self, x, branches):
        raise RuntimeError('broken by a test')

    monkeypatch.setattr(ResidualFusion, 'forward', broken)
    record = try_config(folder, 'b.py', {})
    assert record.status == FAILED and 'broken by a test' in record.reason
    record = try_config(folder, 'd.py', {})
    assert 'its neck does not run either' in record.reason


def test_the_command(folder, tmp_path, capsys):
    words = ['graft-zoo', 'mmdet', '--only', 'a/', '--out',
             str(tmp_path / 'x.jsonl')]
    records = main(parser().parse_args(words))
    assert statuses(records) == [IDENTICAL] * 2
    assert 'FPN' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='graft-zoo failed: .*--resume'):
        main(parser().parse_args(words))
    records = main(parser().parse_args([*words, '--resume']))
    assert statuses(records) == [IDENTICAL] * 2


def test_an_interrupted_command_says_how_to_go_on(folder, monkeypatch):

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(graft_zoo, 'try_config', interrupted)
    with pytest.raises(SystemExit, match='--resume'):
        main(parser().parse_args(['graft-zoo', 'mmdet']))


def test_bad_libraries():
    with pytest.raises(ValueError, match="'mmpose'"):
        sweep('mmpose')
    with pytest.raises(FileNotFoundError, match='no_such is not installed'):
        config_folder('no_such')
    assert Record('a', IDENTICAL, 'FPN', '', '', 0.).status in (
        graft_zoo.STATUSES)
