"""``doctor --data CONFIG`` checks the data of a config, its heads and samples."""

import json

import pytest
from helpers.coco_files import coco_config, coco_content, write_coco
from helpers.miniature_segmentation import write_voc_tree
from helpers.shipped_configs import CONFIGS
from mmengine.config import Config

from fpt_plugin.commands.doctor import command as doctor
from fpt_plugin.commands.doctor.checks import FAIL, OK, WARN
from fpt_plugin.commands.doctor.data_probe import examine

RETINA = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=4,
                  out_indices=(0, 1, 2, 3)),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8,
                   stacked_convs=1))


def config(folder, **changes):
    return Config(dict(coco_config(folder, **changes).to_dict(), model=RETINA))


def statuses(cfg):
    return {finding.name: finding.status for finding in examine(cfg)}


def run(*flags):
    return doctor.main(doctor.parser().parse_args(list(flags)))


def test_the_command(tmp_path, capfd):
    content = coco_content()
    del content['annotations'][1]['area']
    path = str(tmp_path / 'c.py')
    config(write_coco(tmp_path, content)).dump(path)
    diagnosis = run('--data', path, '--json')
    printed = json.loads(capfd.readouterr().out)
    assert printed == json.loads(json.dumps(diagnosis.to_dict()))
    assert diagnosis.exit_code == 1 and not printed['ok']
    finding = diagnosis.findings[0]
    assert finding.name == 'train_dataloader.dataset.ann_file'
    assert "1 annotations without 'area'" in finding.text
    cfg_options = [f'{split}_dataloader={None}' for split in ('train', 'val', 'test')]
    assert run('--data', path, '--cfg-options', *cfg_options).exit_code == 0
    with pytest.raises(doctor.ERRORS, match='nothing.py'):
        run('--data', str(tmp_path / 'nothing.py'))
    with pytest.raises(doctor.ERRORS, match='--data'):
        run('--cfg-options', 'a=1')


def test_heads_of_other_classes(tmp_path):
    cfg = config(write_coco(tmp_path))
    assert statuses(cfg) == dict(
        model=OK, train_dataloader=OK, val_dataloader=OK, test_dataloader=OK)
    cfg.model.bbox_head.num_classes = 80
    assert statuses(cfg)['model'] == FAIL
    cfg.model.bbox_head.type = 'Misspelt'
    assert statuses(cfg)['model'] == WARN  # the data are checked all the same


def test_samples_that_do_not_load(tmp_path):
    cfg = config(write_coco(tmp_path))
    (tmp_path / '3.png').write_bytes(b'')
    assert statuses(cfg)['train_dataloader'] == FAIL
    (tmp_path / '3.png').unlink()
    found = statuses(cfg)
    assert found['train_dataloader.dataset.ann_file'] == WARN
    assert found['train_dataloader'] == FAIL


@pytest.mark.parametrize('settings, words', [
    (dict(filter_cfg=dict(min_size=999)), 'min_size'),
    (dict(indices=[]), 'indices'),
    (dict(ann_file='b.json'), 'b.json is not there'),
])
def test_datasets_without_samples(tmp_path, settings, words):
    cfg = config(write_coco(tmp_path))
    cfg.train_dataloader.dataset.update(settings)
    found = [finding.text for finding in examine(cfg) if finding.status == FAIL]
    assert len(found) == 1 and words in found[0]


def test_segmentation(tmp_path):
    write_voc_tree(tmp_path)
    cfg = Config.fromfile(
        CONFIGS / 'fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py')
    cfg.model.decode_head.num_classes = 21
    cfg.model.pretrained = None
    dataset = dict(
        type='PascalVOCDataset', data_root=str(tmp_path),
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/train.txt',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')])
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'] = dict(dataset=dict(dataset))
        cfg[f'{split}_evaluator'] = dict(type='IoUMetric')
    assert set(statuses(cfg).values()) == {OK}
    cfg.train_dataloader.dataset.ann_file = 'ImageSets/Segmentation/aug.txt'
    found = [finding for finding in examine(cfg) if finding.status == FAIL]
    assert [finding.name for finding in found] == ['train_dataloader.dataset']
    assert '2 of 2 label maps are not there' in found[0].text
