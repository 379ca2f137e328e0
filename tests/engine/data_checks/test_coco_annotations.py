"""Faults of annotation files are counted and named before a run."""

import json

import cv2
import numpy as np
import pytest
from helpers.checked_data import expect
from helpers.coco_files import coco_config, coco_content, write_coco

from fpt_plugin.engine.data_checks import annotation_files, check_data, inspect_data


def without(part, key, count=2):
    def change(content):
        for entry in content[part][:count]:
            del entry[key]
    return change


def put(part, count=2, **values):
    def change(content):
        for entry in content[part][:count]:
            entry.update(values)
    return change


def faulty(folder, *changes):
    content = coco_content()
    for change in changes:
        change(content)
    return write_coco(folder, content)


BOX = '2 annotations whose bbox'
TYPE = '2 annotations whose image_id is of another'


def as_texts(content):
    for image in content['images']:
        image['id'] = str(image['id'])
    for annotation in content['annotations']:
        annotation['image_id'] = str(annotation['image_id'])


@pytest.mark.parametrize('change, words', [
    *((without('annotations', key), f"2 annotations without '{key}'")
      for key in ('area', 'id', 'bbox', 'image_id', 'category_id')),
    *((without('images', key), f"2 images without '{key}'")
      for key in ('height', 'width', 'file_name')),
    *((put('annotations', bbox=box), BOX)
      for box in (None, [0, 0, 5], ['0', 0, 5, 5], [0, float('nan'), 5, 5],
                  [0, 0, float('inf'), 5])),
    (put('annotations', area=float('nan')), '2 annotations whose area'),
    (put('annotations', image_id='1'), TYPE),
    (put('images', 1, id='1'), TYPE),
    (put('annotations', 1, category_id='1'), '1 annotations whose category_id is of'),
    (put('annotations', 9, image_id=99), 'no annotation of'),
    (put('images', 2, id=1), '1 ids that several images share'),
    (put('annotations', 3, id=1), '1 ids that several annotations share'),
    (put('images', height=0), '2 images whose height'),
    (lambda content: content.update(images=[], annotations=[]), 'has no images'),
    (lambda content: content.pop('categories'), 'has no categories'),
    (without('categories', 'name', 1), '1 categories of'),
    (put('annotations', 1, id=1.5), "1 annotations whose 'id' is no whole number"),
])
def test_errors_of_a_training(tmp_path, change, words):
    cfg = coco_config(faulty(tmp_path, change))
    expect(ValueError, f'(?s){words}.*a.json|a.json {words}', cfg)


LESS = '2 annotations with a box of less'
NEEDED = 'which the evaluation needs'


@pytest.mark.parametrize('change, split, kind, words', [
    (without('annotations', 'iscrowd'), 'train', UserWarning, "2 .* without 'iscrowd'"),
    (put('annotations', image_id=99), 'train', UserWarning, '2 .* whose image_id none'),
    (put('annotations', category_id=99), 'train', UserWarning, '2 .*category_id none'),
    (put('annotations', bbox=[0, 0, 0, 5]), 'train', UserWarning, LESS),
    (put('annotations', area=0), 'train', UserWarning, LESS),
    (put('annotations', bbox=[70, 0, 5, 5]), 'train', UserWarning, '2 .* box outside'),
    (put('images', height=60, width=40), 'train', UserWarning, 'height are swapped'),
    (put('images', 1, height=41), 'train', UserWarning, '1 of 3 images'),
    (without('annotations', 'iscrowd'), 'val', ValueError, NEEDED),
    (put('annotations', 1, id='a1'), 'val', ValueError, NEEDED),
    (put('annotations', 1, id=0), 'val', UserWarning, 'the id 0'),
    *((change, 'val', None, '') for change in (
        lambda content: None,
        put('annotations', 1, iscrowd=1,
            segmentation=dict(counts=[1, 2], size=[40, 60])),
        put('annotations', 1, ignore=True, bbox=None),
        put('annotations', 9, keypoints=[1, 2, 3], score=None),
        without('annotations', 'segmentation'),
        put('annotations', 9, image_id=1.0, category_id=2.0),
        put('images', 1, id=1.0), as_texts)),
])
def test_warnings_and_evaluations(tmp_path, change, split, kind, words):
    cfg = coco_config(faulty(tmp_path, change))
    expect(kind, words, cfg, split)
    if kind is None:
        expect(kind, words, cfg, 'train')


def test_a_metric_without_a_file_reads_the_datasets_annotations(tmp_path):
    def change(content):
        del content['categories'][1]
        content['annotations'] = content['annotations'][::2]
        for annotation in content['annotations']:
            del annotation['iscrowd']

    cfg = coco_config(faulty(tmp_path, change))
    expect(ValueError, NEEDED, cfg, 'val')
    del cfg.val_evaluator['ann_file']
    expect(UserWarning, "without 'iscrowd'", cfg, 'val')


@pytest.mark.parametrize('names', [
    ['annotations'], ['annotations', 'categories'], ['images', 'annotations']])
def test_images_without_objects(tmp_path, names):
    """A warning, or an error if they are filtered out."""
    cfg = coco_config(faulty(tmp_path, lambda content: content.update(
        dict.fromkeys(names, []))))
    if 'images' not in names:
        expect(UserWarning, 'has no annotations', cfg)
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    expect(ValueError, 'has no annotations', cfg)


@pytest.mark.parametrize('classes, load, metric, split, kind', [
    (('disc', 'square'), True, 'bbox', 'train', ValueError),
    (('square', ), True, 'bbox', 'train', None),  # the faulty one is a disc
    (('disc', 'square'), False, 'segm', 'train', None),
    (('disc', 'square'), False, 'segm', 'val', ValueError),
    (('disc', 'square'), False, ['bbox', 'segm'], 'val', ValueError),
    (('disc', 'square'), False, 'bbox', 'val', None),
])
def test_masks_are_needed_to_load_or_evaluate_them(
        tmp_path, classes, load, metric, split, kind):
    cfg = coco_config(faulty(tmp_path, without('annotations', 'segmentation', 1)),
                      classes=classes)
    cfg.val_evaluator.metric = metric
    if load:
        cfg.train_dataloader.dataset.pipeline.append(
            dict(type='LoadAnnotations', with_mask=True))
    expect(kind, "1 annotations without 'segmentation'", cfg, split)


def test_images_that_are_not_there_and_no_coco_file(tmp_path):
    cfg = coco_config(write_coco(tmp_path))
    (tmp_path / '2.png').unlink()
    expect(UserWarning, '1 of 3 images .* are not there', cfg)
    for name in ('1.png', '3.png'):
        (tmp_path / name).unlink()
    expect(ValueError, '3 of 3 images .* are not there', cfg)
    for text in ('{"images": [', '[1]', '{"images": {}}', ''):
        (tmp_path / 'a.json').write_text(text)
        expect(ValueError, 'a.json', cfg)


def test_exif_orientation(tmp_path):
    """OpenCV applies it, so the size is that of the rotated image."""
    from PIL import Image
    content = coco_content(1)
    content['images'][0].update(file_name='1.jpg')
    cfg = coco_config(write_coco(tmp_path, content))
    exif = Image.Exif()
    exif[274] = 6
    Image.new('RGB', (40, 60)).save(tmp_path / '1.jpg', exif=exif)
    assert cv2.imread(str(tmp_path / '1.jpg')).shape == (40, 60, 3)
    expect(None, '', cfg)


def test_panoptic_files_keep_their_own_annotations(tmp_path):
    content = coco_content()
    for annotation in content['annotations']:
        segment = dict(annotation, id=5)
        annotation.clear()
        annotation.update(image_id=segment['image_id'], segments_info=[segment])
    cfg = coco_config(write_coco(tmp_path, content))
    cfg.train_dataloader.dataset.type = 'CocoPanopticDataset'
    check_data(cfg, 'train')
    cfg.train_dataloader.dataset.metainfo.classes = ('square', 'disc')
    expect(ValueError, 'swapped', cfg)


@pytest.fixture
def in_part(monkeypatch):
    monkeypatch.setattr(annotation_files, 'MAX_WHOLE_BYTES', 0)
    monkeypatch.setattr(annotation_files, 'BLOCK_BYTES', 4000)
    monkeypatch.setattr(annotation_files, 'NUM_BLOCKS', 4)


@pytest.mark.parametrize('dump', [
    {}, dict(indent=2), dict(sort_keys=True), dict(separators=(',', ':'))])
@pytest.mark.parametrize('first', ['images', 'categories', 'annotations'])
def test_large_files_are_read_in_part(tmp_path, in_part, dump, first):
    content = coco_content(400)
    content = {first: content[first], **content}
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content, **dump))
    file = annotation_files.read_annotations(str(path))
    assert not file.whole and file.categories == content['categories']
    assert 5 < len(file.annotations) < 400
    for found, given in ((file.annotations, content['annotations']),
                         (file.images, content['images'])):
        assert all(entry in given for entry in found)
    assert annotation_files.read_annotations(str(path), whole=True).whole


def test_other_objects_of_a_large_file_are_skipped(tmp_path, in_part):
    content = coco_content(400)
    for annotation in content['annotations']:
        annotation['attributes'] = dict(height=1.5, more=dict(bbox=[1], width=2))
    content.update(
        videos=[dict(id=i, name=f'v{i}', width=60, height=40) for i in range(400)],
        tracks=[dict(id=i, category_id=1, video_id=i) for i in range(400)])
    for name in ('videos', 'tracks', 'annotations'):
        content[name] = content.pop(name)
        path = tmp_path / 'a.json'
        path.write_text(json.dumps(content))
        file = annotation_files.read_annotations(str(path))
        assert file.annotations and not file.whole
        assert all(a in content['annotations'] for a in file.annotations)
        assert all(i in content['images'] for i in file.images)


def test_the_doctor_reads_all_of_a_large_file(tmp_path, in_part):
    content = coco_content(400)
    cfg = coco_config(write_coco(tmp_path, content, pictures=False))
    read = annotation_files.read_annotations(str(tmp_path / 'a.json')).annotations
    unread = [a for a in content['annotations'] if a not in read]
    del unread[len(unread) // 2]['area']
    write_coco(tmp_path, content, pictures=False)
    cfg.train_dataloader.dataset.pipeline = []
    check_data(cfg, 'train')  # between the blocks
    problem, = inspect_data(cfg, 'train')
    assert problem.fatal and "1 annotations without 'area'" in problem.text
    for annotation in content['annotations']:
        annotation.pop('area', None)
    write_coco(tmp_path, content, pictures=False)
    expect(ValueError, "without 'area'.*doctor --data", cfg)


def test_the_number_of_dropped_boxes_is_mmdets(tmp_path):
    from mmdet.datasets import CocoDataset
    generator = np.random.default_rng(0)
    content = coco_content(20)
    for annotation in content['annotations']:
        annotation['bbox'] = generator.uniform(-30, 70, 4).round(1).tolist()
        annotation['area'] = float(generator.choice([0, 10, 10]))
        annotation['category_id'] = int(generator.choice([1, 2, 3]))
    cfg = coco_config(write_coco(tmp_path, content))
    left_out = [int(problem.text.split()[0]) for problem in inspect_data(cfg, 'train')
                if 'left out' in problem.text and 'with a box' in problem.text]
    for annotation in content['annotations']:
        annotation['category_id'] = 1
    write_coco(tmp_path, content)
    dataset = CocoDataset(ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=''),
                          metainfo=dict(classes=('disc', 'square')))
    kept = sum(len(dataset.get_data_info(i)['instances']) for i in range(20))
    assert kept + sum(left_out) == 40
