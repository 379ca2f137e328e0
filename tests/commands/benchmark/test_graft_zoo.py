"""Grafts of the libraries' shipped configs."""

from __future__ import annotations

import json

import pytest
from helpers.graft_detectors import FPN, NECKS, retinanet, write
from rich.console import Console

from fpt_plugin.commands.benchmark import graft_zoo as zoo
from fpt_plugin.commands.benchmark.command import main, parser
from fpt_plugin.commands.benchmark.graft_zoo import shipped_configs, sweep, try_config
from fpt_plugin.commands.common import config_folder


# One config of each kind of neck that is fast enough, of both libraries.
@pytest.mark.parametrize('library, name, status', [
    ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', zoo.IDENTICAL),
    ('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', zoo.IDENTICAL),
    ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', zoo.IDENTICAL),
    ('mmdet', 'pafpn/faster-rcnn_r50_pafpn_1x_coco.py', zoo.IDENTICAL),
    ('mmdet', 'libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py', zoo.IDENTICAL),
    ('mmdet', 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', zoo.IDENTICAL),
    ('mmdet', 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', zoo.REFUSED),
    ('mmdet', 'common/ms_3x_coco.py', zoo.REFUSED),
    ('mmseg', 'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py', zoo.IDENTICAL),
    ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', zoo.REFUSED),
])
def test_shipped_configs(library, name, status):
    record = try_config(config_folder(library), name, {})
    assert record.status == status, record.reason
    if status == zoo.IDENTICAL:
        assert record.reason == 'neck and heads, which read the graft'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A library's configs: two with the same model, and faulty ones."""
    root = tmp_path / 'configs'
    classes, missing, head = (retinanet(FPN) for _ in range(3))
    classes.model.bbox_head.num_classes = 5
    missing.custom_imports = dict(
        imports=['missing_package'], allow_failed_imports=False)
    head.model.bbox_head.type = 'MissingHead'
    for name, cfg in {
            '_base_/models.py': retinanet(FPN), 'a/one.py': retinanet(FPN),
            'a/two.py': classes, 'b.py': retinanet(NECKS['PAFPN']),
            'c.py': missing, 'd.py': head, 'e.py': retinanet(None)}.items():
        write(cfg, root / name)
    monkeypatch.setattr(zoo, 'config_folder', lambda library: root)
    return root


def statuses(records):
    return [record.status for record in records]


NAMES = ['a/one.py', 'a/two.py', 'b.py', 'c.py', 'd.py', 'e.py']
ALL = [*[zoo.IDENTICAL] * 3, *[zoo.UNBUILDABLE] * 2, zoo.REFUSED]


def test_the_command_reports_every_config(folder, tmp_path, capsys):
    assert shipped_configs(folder) == NAMES
    out = tmp_path / 'results' / 'all.jsonl'
    words = ['graft-zoo', 'mmdet', '--out', str(out)]
    records = main(parser().parse_args(words))
    assert statuses(records) == ALL
    assert records[0].model == records[1].model != records[2].model
    assert records[0].seconds > 0 == records[1].seconds
    assert [json.loads(line)['config'] for line in
            out.read_text().splitlines()] == NAMES
    assert records[4].reason.endswith('backbone and neck are identical')
    text = capsys.readouterr().out
    assert '6 configs of mmdet' in text and '2 distinct models' in text
    assert 'MissingHead' in text and 'missing_package' in text
    with pytest.raises(SystemExit, match='graft-zoo failed: .*--resume'):
        main(parser().parse_args(words))
    records = main(parser().parse_args([*words, '--resume', '--only', 'a/']))
    assert statuses(records) == [zoo.IDENTICAL] * 2


def test_an_interrupted_sweep_resumes(folder, tmp_path, monkeypatch):
    out = tmp_path / 'all.jsonl'
    console = Console(quiet=True)
    sweep('mmdet', out, limit=1, console=console)
    with out.open('a') as file:
        file.write('{"config": "a/two.py", "sta')  # killed here
    tried = []
    original = zoo.try_config

    def record(folder, name, known, options):
        tried.append(name)
        return original(folder, name, known, options)

    monkeypatch.setattr(zoo, 'try_config', record)
    records = sweep('mmdet', out, resume=True, console=console)
    assert statuses(records) == ALL
    assert tried == NAMES[1:]
    assert records[1].seconds == 0.  # the model was known from the file
    assert len(out.read_text().splitlines()) == 6
    out.write_text('[1, 2]\n')
    with pytest.raises(ValueError, match='line 1'):
        sweep('mmdet', out, resume=True, console=console)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, 'try_config', interrupt)
    with pytest.raises(SystemExit, match='--resume'):
        main(parser().parse_args(['graft-zoo', 'mmdet']))


def test_differences_and_failures_are_found(folder, monkeypatch):
    from fpt_plugin.necks.fusion import ResidualFusion

    def broken(self, x, branches):
        raise RuntimeError('broken by a test')

    for forward, status, neck, reason in (
            (lambda self, x, branches: x + 1e-6, zoo.DIFFERENT, 'neck', 'DIFFERENT'),
            (broken, zoo.FAILED, 'broken by a test', 'its neck does not run either')):
        monkeypatch.setattr(ResidualFusion, 'forward', forward)
        record = try_config(folder, 'b.py', {})
        assert record.status == status and neck in record.reason
        record = try_config(folder, 'd.py', {})
        assert record.status == zoo.UNBUILDABLE and reason in record.reason


def test_bad_libraries():
    with pytest.raises(ValueError, match="'mmpose'"):
        sweep('mmpose')
    with pytest.raises(FileNotFoundError, match='no_such is not installed'):
        config_folder('no_such')
