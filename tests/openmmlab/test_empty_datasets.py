"""The error of an empty dataset names the cause."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import coco_content, write_coco
from mmengine.dataset import BaseDataset

from fpt_plugin.openmmlab.empty_datasets import name_empty_datasets

name_empty_datasets()


def coco(folder, **settings):
    from mmdet.datasets import CocoDataset
    settings = dict(dict(metainfo=dict(classes=('disc', 'square'))), **settings)
    return CocoDataset(ann_file='a.json', data_root=str(folder),
                       data_prefix=dict(img=''), **settings)


@pytest.mark.parametrize('settings, words', [
    (dict(filter_cfg=dict(min_size=64)), 'min_size.*leaves none of the 3 in .*a.json'),
    (dict(filter_cfg=dict(filter_empty_gt=True), metainfo=dict(classes=('tree', ))),
     "filter_empty_gt.*no object is of the classes 'tree'"),
    (dict(indices=[]), r'indices=\[\] leaves none of 3'),
    (dict(indices=0), r'indices=0 leaves none of 3'),
])
def test_coco_settings_that_leave_no_sample(tmp_path, settings, words):
    write_coco(tmp_path)
    assert len(coco(tmp_path)) == 3
    with pytest.raises(ValueError, match=f'CocoDataset has no samples: .*{words}'):
        coco(tmp_path, **settings)


def test_empty_annotation_files(tmp_path):
    from mmdet.datasets import XMLDataset
    write_coco(tmp_path, dict(coco_content(), images=[], annotations=[]))
    with pytest.raises(ValueError, match=r'a\.json lists none'):
        coco(tmp_path)
    Path(tmp_path, 'list.txt').write_text('')
    with pytest.raises(ValueError, match='XMLDataset has no samples.*list.txt'):
        XMLDataset(ann_file='list.txt', data_root=str(tmp_path), img_subdir='',
                   ann_subdir='', metainfo=dict(classes=('a', )),
                   data_prefix=dict(sub_data_root=''))


@pytest.mark.parametrize('settings, words', [
    (dict(), r"img_suffix='\.jpg'; it has 1 of \.png"),
    (dict(data_prefix=dict(img_path='empty')), 'empty, is empty'),
    (dict(ann_file='list.txt'), r'list\.txt lists none'),
    (dict(img_suffix='.png', indices=[]), 'indices'),
])
def test_segmentation(tmp_path, settings, words):
    from mmseg.datasets import BaseSegDataset
    for folder in ('images', 'empty'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'images/a.png').write_bytes(b'')
    (tmp_path / 'list.txt').write_text('')
    given = dict(data_root=str(tmp_path), metainfo=dict(classes=('a', 'b')),
                 data_prefix=dict(img_path='images'))
    given.update(settings)
    with pytest.raises(ValueError, match=words):
        BaseSegDataset(**given)


def test_datasets_with_samples(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(metainfo={}, data_list=[dict(img_path='a')])))
    dataset = BaseDataset(ann_file=str(path))
    assert len(dataset) == 1 and isinstance(dataset.data_bytes, np.ndarray)
