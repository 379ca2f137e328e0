"""Paths are searched like by the datasets."""

import pytest
from mmengine.config import Config

from fpt_plugin.engine.data_checks import check_data


def cityscapes(folder, kind='CityscapesDataset'):
    (folder / 'images/city').mkdir(parents=True)
    (folder / 'images/city/a_leftImg8bit.png').write_bytes(b'')
    dataset = dict(
        type=kind, data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[dict(type='LoadAnnotations')])
    return Config(dict(default_scope='mmseg',
                       train_dataloader=dict(dataset=dataset)))


def write_labels(folder):
    folder.mkdir(parents=True)
    (folder / 'a_gtFine_labelTrainIds.png').write_bytes(b'')


def test_labels_behind_a_link(tmp_path):
    cfg = cityscapes(tmp_path)
    (tmp_path / 'labels').mkdir()
    with pytest.raises(FileNotFoundError, match='no file .*TrainIds.png'):
        check_data(cfg, 'train')
    write_labels(tmp_path / 'elsewhere')
    (tmp_path / 'labels/city').symlink_to(tmp_path / 'elsewhere')
    check_data(cfg, 'train')


def test_a_dataset_that_is_a_class(tmp_path):
    from mmseg.datasets import CityscapesDataset
    cfg = cityscapes(tmp_path, CityscapesDataset)
    (tmp_path / 'labels').mkdir()
    with pytest.raises(FileNotFoundError, match='cityscapes.py'):  # the converter
        check_data(cfg, 'train')


def test_an_unknown_dataset_is_left_to_the_library(tmp_path):
    cfg = cityscapes(tmp_path, 'MisspeltDataset')
    (tmp_path / 'labels').mkdir()
    check_data(cfg, 'train')
