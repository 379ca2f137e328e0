"""Paths are searched like by the datasets."""

import pytest
from mmengine.config import Config

from fpt_plugin.engine.data_checks import check_data


def cityscapes(folder):
    (folder / 'images/city').mkdir(parents=True)
    (folder / 'images/city/a_leftImg8bit.png').write_bytes(b'')
    dataset = dict(
        type='CityscapesDataset', data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[dict(type='LoadAnnotations')])
    return Config(dict(default_scope='mmseg',
                       train_dataloader=dict(dataset=dataset)))


def test_labels_behind_a_link(tmp_path):
    from mmseg.datasets import CityscapesDataset
    cfg = cityscapes(tmp_path)
    (tmp_path / 'labels').mkdir()
    dataset = cfg.train_dataloader.dataset
    for kind in ('CityscapesDataset', CityscapesDataset):
        dataset.type = kind
        with pytest.raises(FileNotFoundError,
                           match='no file .*TrainIds.png.*cityscapes.py'):
            check_data(cfg, 'train')
    dataset.type = 'MisspeltDataset'  # the library reports it
    check_data(cfg, 'train')
    dataset.type = CityscapesDataset
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/a_gtFine_labelTrainIds.png').write_bytes(b'')
    (tmp_path / 'labels/city').symlink_to(tmp_path / 'elsewhere')
    check_data(cfg, 'train')
