"""Faults of annotation files are counted and named before a run."""

import json
import warnings

import cv2
import numpy as np
import pytest
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


@pytest.mark.parametrize('change, words', [
    (without('annotations', 'area'), "2 annotations without 'area'"),
    (without('annotations', 'id'), "2 annotations without 'id'"),
    (without('annotations', 'bbox'), "2 annotations without 'bbox'"),
    (without('annotations', 'image_id'), "2 annotations without 'image_id'"),
    (without('annotations', 'category_id', 1), "1 annotations without 'category_id'"),
    (without('images', 'height'), "2 images without 'height'"),
    (without('images', 'width', 1), "1 images without 'width'"),
    (without('images', 'file_name', 1), "1 images without 'file_name'"),
    (put('annotations', bbox=[0, float('nan'), 5, 5]), '2 annotations whose bbox'),
    (put('annotations', bbox=[0, 0, float('inf'), 5]), '2 annotations whose bbox'),
    (put('annotations', bbox=[0, 0, 5]), '2 annotations whose bbox'),
    (put('annotations', bbox=['0', 0, 5, 5]), '2 annotations whose bbox'),
    (put('annotations', bbox=None), '2 annotations whose bbox'),
    (put('annotations', area=float('nan')), '2 annotations whose area'),
    (put('annotations', image_id='1'), '2 annotations whose image_id is of another'),
    (put('images', 1, id='1'), '2 annotations whose image_id is of another'),
    (put('annotations', 1, category_id='1'), '1 annotations whose category_id is of'),
    (put('annotations', 9, image_id=99), 'no annotation of'),
    (put('images', 2, id=1), '1 ids that several images share'),
    (put('annotations', 3, id=1), '1 ids that several annotations share'),
    (put('images', height=0), '2 images whose height'),
    (lambda content: content.update(images=[], annotations=[]), 'has no images'),
    (lambda content: content.pop('categories'), 'has no categories'),
])
def test_refused(tmp_path, change, words):
    cfg = coco_config(faulty(tmp_path, change))
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter('ignore')
        check_data(cfg, 'train')
    assert words in str(error.value)
    assert 'a.json' in str(error.value)


@pytest.mark.parametrize('change, words', [
    (without('annotations', 'iscrowd'), "2 annotations without 'iscrowd'"),
    (put('annotations', image_id=99), '2 annotations whose image_id none'),
    (put('annotations', category_id=99), '2 annotations whose category_id none'),
    (put('annotations', bbox=[0, 0, 0, 5]), '2 annotations with a box of less'),
    (put('annotations', area=0), '2 annotations with a box of less'),
    (put('annotations', bbox=[70, 0, 5, 5]), '2 annotations with a box outside'),
    (put('images', height=60, width=40), 'width and height are swapped'),
    (put('images', 1, height=41), '1 of 3 images'),
])
def test_counted_where_a_run_goes_on(tmp_path, change, words):
    cfg = coco_config(faulty(tmp_path, change))
    with pytest.warns(UserWarning, match=words):
        check_data(cfg, 'train')


@pytest.mark.parametrize('change', [
    lambda content: None,
    put('annotations', 1, iscrowd=1, segmentation=dict(counts=[1, 2], size=[40, 60])),
    put('annotations', 1, ignore=True, bbox=None),
    put('annotations', 9, keypoints=[1, 2, 3], score=None),
    without('annotations', 'segmentation'),
    put('annotations', 9, image_id=1.0, category_id=2.0),
    put('images', 1, id=1.0),
    lambda content: [a.update(image_id=str(a['image_id']))
                     for a in content['annotations']] and [
                         i.update(id=str(i['id'])) for i in content['images']],
])
def test_harmless(tmp_path, change):
    cfg = coco_config(faulty(tmp_path, change))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_data(cfg, 'train', 'val')


@pytest.mark.parametrize('change, words', [
    (without('annotations', 'iscrowd'), 'which the evaluation needs'),
    (put('annotations', 1, id='a1'), 'which the evaluation needs'),
])
def test_what_an_evaluation_needs(tmp_path, change, words):
    cfg = coco_config(faulty(tmp_path, change))
    with pytest.raises(ValueError, match=words):
        check_data(cfg, 'val')


def test_a_metric_without_a_file_takes_what_the_dataset_reads(tmp_path):
    def change(content):
        del content['categories'][1]
        content['annotations'] = content['annotations'][::2]
        for annotation in content['annotations']:
            del annotation['iscrowd']

    cfg = coco_config(faulty(tmp_path, change))
    with pytest.raises(ValueError, match='which the evaluation needs'):
        check_data(cfg, 'val')
    del cfg.val_evaluator['ann_file']
    with pytest.warns(UserWarning, match="without 'iscrowd'"):
        check_data(cfg, 'val')


@pytest.mark.parametrize('names', [
    ['annotations'], ['annotations', 'categories'], ['images', 'annotations']])
def test_images_without_objects(tmp_path, names):
    """They can be trained on, where they are not left out."""
    cfg = coco_config(faulty(tmp_path, lambda content: content.update(
        dict.fromkeys(names, []))))
    if 'images' not in names:
        with pytest.warns(UserWarning, match='has no annotations'):
            check_data(cfg, 'train')
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    with pytest.raises(ValueError, match='has no annotations'):
        check_data(cfg, 'train')


def test_an_id_of_zero_in_an_evaluation(tmp_path):
    cfg = coco_config(faulty(tmp_path, put('annotations', 1, id=0)))
    with pytest.warns(UserWarning, match='the id 0'):
        check_data(cfg, 'val')


def test_masks_only_where_they_are_loaded(tmp_path):
    cfg = coco_config(faulty(tmp_path, without('annotations', 'segmentation')))
    cfg.train_dataloader.dataset.pipeline.append(
        dict(type='LoadAnnotations', with_mask=True))
    with pytest.raises(ValueError, match="2 annotations without 'segmentation'"):
        check_data(cfg, 'train')


@pytest.mark.parametrize('metric', ['segm', ['bbox', 'segm'], 'bbox'])
def test_masks_that_are_evaluated(tmp_path, metric):
    cfg = coco_config(faulty(tmp_path, without('annotations', 'segmentation')))
    cfg.val_evaluator.metric = metric
    if metric == 'bbox':
        check_data(cfg, 'val')
    else:
        with pytest.raises(ValueError, match="2 annotations without 'segmentation'"):
            check_data(cfg, 'val')


def test_masks_of_classes_that_are_not_used(tmp_path):
    cfg = coco_config(faulty(tmp_path, without('annotations', 'segmentation', 1)),
                      classes=('square', ))
    cfg.train_dataloader.dataset.pipeline.append(
        dict(type='LoadAnnotations', with_mask=True))
    check_data(cfg, 'train')


def test_images_that_are_not_there(tmp_path):
    cfg = coco_config(write_coco(tmp_path))
    (tmp_path / '2.png').unlink()
    with pytest.warns(UserWarning, match='1 of 3 images .* are not there'):
        check_data(cfg, 'train')
    for name in ('1.png', '3.png'):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match='3 of 3 images .* are not there'):
        check_data(cfg, 'train')


def test_a_photograph_that_exif_turns(tmp_path):
    """OpenCV loads it turned, so that is its size."""
    from PIL import Image
    content = coco_content(1)
    content['images'][0].update(file_name='1.jpg')
    cfg = coco_config(write_coco(tmp_path, content))
    exif = Image.Exif()
    exif[274] = 6
    Image.new('RGB', (40, 60)).save(tmp_path / '1.jpg', exif=exif)
    assert cv2.imread(str(tmp_path / '1.jpg')).shape == (40, 60, 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_data(cfg, 'train')


@pytest.mark.parametrize('text', ['{"images": [', '[1]', '{"images": {}}', ''])
def test_no_coco_file(tmp_path, text):
    cfg = coco_config(write_coco(tmp_path))
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(ValueError, match='a.json'):
        check_data(cfg, 'train')


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
    with pytest.raises(ValueError, match='swapped'):
        check_data(cfg, 'train')


@pytest.fixture
def in_part(monkeypatch):
    monkeypatch.setattr(annotation_files, 'WHOLE', 0)
    monkeypatch.setattr(annotation_files, 'BLOCK', 4000)
    monkeypatch.setattr(annotation_files, 'BLOCKS', 4)


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


def test_what_is_no_image_or_annotation_of_a_large_file(tmp_path, in_part):
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


def test_the_doctor_reads_what_a_start_leaves_out(tmp_path, in_part):
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
    with pytest.raises(ValueError, match="without 'area'.*doctor --data"):
        check_data(cfg, 'train')


def test_numbers_are_those_that_the_dataset_keeps(tmp_path):
    """What is said to be left out is what mmdet leaves out."""
    from mmdet.datasets import CocoDataset
    generator = np.random.default_rng(0)
    content = coco_content(20)
    for annotation in content['annotations']:
        annotation['bbox'] = generator.uniform(-30, 70, 4).round(1).tolist()
        annotation['area'] = float(generator.choice([0, 10, 10]))
        annotation['category_id'] = int(generator.choice([1, 2, 3]))
    cfg = coco_config(write_coco(tmp_path, content))
    left_out = [int(problem.text.split()[0]) for problem in inspect_data(cfg, 'train')
                if 'left out' in problem.text and 'box' in problem.text]
    for annotation in content['annotations']:
        annotation['category_id'] = 1
    write_coco(tmp_path, content)
    dataset = CocoDataset(ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=''),
                          metainfo=dict(classes=('disc', 'square')))
    kept = sum(len(dataset.get_data_info(i)['instances']) for i in range(20))
    assert kept + sum(left_out) == 40
