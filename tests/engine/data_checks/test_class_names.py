"""Class names must be in the order of the annotation file."""

import json

import pytest
from helpers.checked_data import expect
from helpers.coco_files import SPLITS, coco_config, write_coco

from fpt_plugin.engine.data_checks import check_data
from fpt_plugin.engine.data_checks.class_names import check_class_names

ANIMALS = ('cat', 'dog', 'hen')
RAT = (*ANIMALS, 'rat')
MANY = [f'n{i}' for i in range(80)]
SWAPPED = [*MANY[:5], MANY[6], MANY[5], *MANY[7:]]


@pytest.mark.parametrize('classes, names, evaluated, fatal, words', [
    # Subsets in the file's order pass.
    *((classes, ANIMALS, evaluated, None, '')
      for classes in (ANIMALS, list(ANIMALS), ('cat', 'dog'), ('cat', 'hen'), ('hen', ))
      for evaluated in (True, False)),
    (MANY, MANY, False, None, ''),
    # The error of another order has both orders, or the labels that differ.
    (('dog', 'cat'), ANIMALS, False, True,
     "classes=('dog', 'cat'), in the file ('cat', 'dog')"),
    (('hen', 'cat', 'dog'), ANIMALS, False, True, str(ANIMALS)),
    (('cat', 'hen', 'dog'), ANIMALS, False, True, str(ANIMALS)),
    (SWAPPED, MANY, False, True, "label 5 is 'n6' in classes and 'n5' in the file"),
    # Missing names.
    (('cat', 'dgo', 'hen'), ANIMALS, False, True, "'dgo' for 'dog'"),
    (('cat', 'dog', 'hne'), ANIMALS, False, True, "'hne' for 'hen'"),
    (('Cat', 'dog', 'hen'), ANIMALS, False, True, "'Cat' for 'cat'"),
    (('person', 'car'), ANIMALS, False, True, "'cat', 'dog', 'hen'"),
    # A missing last class does not change the numbers of the others.
    (RAT, ANIMALS, False, False, "'rat'"),
    (RAT, ANIMALS, True, True, "'rat'"),
    (RAT[::-1], ANIMALS[::-1], False, True, "'rat'"),
    # Duplicate or no categories.
    (('cat', 'dog'), ('cat', 'cat', 'dog'), False, True, 'categories twice'),
    (('cat', 'dog'), (), False, True, 'no categories'),
])
def test_names_and_categories(classes, names, evaluated, fatal, words):
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    problems = list(check_class_names('key', classes, 'a.json', categories, evaluated))
    assert [p.fatal for p in problems] == ([] if fatal is None else [fatal])
    assert all(words in p.text for p in problems)


def test_ids_may_have_any_order_but_must_differ():
    categories = [dict(id=7, name='cat'), dict(id=3, name='dog')]
    assert not list(check_class_names('', ('cat', 'dog'), '', categories, True))
    categories[1]['id'] = 7
    assert list(check_class_names('', ('cat', 'dog'), '', categories, True))


def wrapped(kind, dataset):
    return {
        'ConcatDataset': dict(type=kind, datasets=[dataset]),
        'RepeatDataset': dict(type=kind, times=2, dataset=dataset),
        'ClassBalancedDataset': dict(type=kind, oversample_thr=.1, dataset=dataset),
        'MultiImageMixDataset': dict(type=kind, dataset=dataset, pipeline=[]),
    }.get(kind, dataset)


@pytest.mark.parametrize('split, kind', [
    *((split, None) for split in SPLITS),
    *(('train', kind) for kind in ('ConcatDataset', 'RepeatDataset',
                                   'ClassBalancedDataset', 'MultiImageMixDataset'))])
def test_datasets_in_configs(tmp_path, split, kind):
    cfg = coco_config(write_coco(tmp_path))
    loader = cfg[f'{split}_dataloader']
    wrong = dict(loader.dataset, metainfo=dict(classes=('square', 'disc')))
    loader.dataset = wrapped(kind, loader.dataset)
    expect(None, '', cfg, *SPLITS)
    loader.dataset = wrapped(kind, wrong)
    expect(ValueError, rf'{split}_dataloader\S*.ann_file.*swapped', cfg, *SPLITS)


def test_other_annotation_files_and_classes(tmp_path):
    cfg = coco_config(write_coco(tmp_path), classes=('disc', 'square'))
    content = json.loads((tmp_path / 'a.json').read_text())
    content['categories'].reverse()
    (tmp_path / 'b.json').write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(tmp_path / 'b.json')
    expect(ValueError, 'val_evaluator.ann_file.*swapped', cfg, 'val')
    cfg.val_evaluator.format_only = True
    check_data(cfg, 'val')
    # One class without a comma.
    expect(ValueError, "got the text 'disc'", coco_config(tmp_path, classes='disc'))


def test_mmdet_numbers_labels_in_the_files_order(tmp_path):
    """The reason for the check: the names have another order."""
    from mmdet.datasets import CocoDataset
    write_coco(tmp_path)
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=''),
        metainfo=dict(classes=('square', 'disc')))
    label = dataset.get_data_info(0)['instances'][0]['bbox_label']
    assert (label, dataset.metainfo['classes'][label]) == (0, 'square')  # a disc


@pytest.mark.parametrize('kind', ['LVISV1Dataset', 'XMLDataset', 'CrowdHumanDataset',
                                  'Objects365V1Dataset', 'Sorted'])
def test_datasets_that_number_labels_themselves(tmp_path, kind):
    from mmdet.datasets import CocoDataset

    class Sorted(CocoDataset):

        def load_data_list(self):
            raise NotImplementedError

    cfg = coco_config(write_coco(tmp_path), classes=('square', 'disc'))
    cfg.train_dataloader.dataset.type = Sorted if kind == 'Sorted' else kind
    check_data(cfg, 'train')


def test_names_from_the_constructor_of_a_users_class(tmp_path):
    from mmdet.datasets import CocoDataset

    class Chosen(CocoDataset):

        def __init__(self, names=('disc', 'square'), **settings):
            super().__init__(metainfo=dict(classes=names), **settings)

    cfg = coco_config(write_coco(tmp_path))
    dataset = cfg.train_dataloader.dataset
    dataset.pop('metainfo')
    dataset.type = Chosen
    check_data(cfg, 'train')
    dataset.names = ('square', 'disc')
    expect(ValueError, 'swapped', cfg)
    dataset.names = None  # mmdet reports the error
    check_data(cfg, 'train')
