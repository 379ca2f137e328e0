"""TTSR: the model, its references, and a training on video frames."""

from __future__ import annotations

import cv2
import mmcv
import numpy as np
import pytest
import torch
from helpers.learning import descend, without_gradient
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from torch.nn import functional as F

import fpt_plugin  # noqa: F401
from fpt_plugin import TTSR
from fpt_plugin.commands import restore
from fpt_plugin.layers.texture_transformer import (
    CrossScaleIntegration,
    TextureTransformer,
)

SMALL = dict(channels=8, blocks=(1, 1, 1, 1), texture_channels=(4, 6, 8))


def build(**args):
    torch.manual_seed(0)
    return MODELS.build(dict(dict(SMALL, type='TTSR'), **args))


def batch_of(size=(8, 9), ref_size=(20, 28), count=2, references=True):
    samples = [BaseDataElement(metainfo=dict(task='sr4')) for _ in range(count)]
    for sample in samples:
        sample.gt_img = torch.randint(256, (3, *(4 * s for s in size))).byte()
        if references:
            sample.ref_img = torch.randint(256, (3, *ref_size)).byte()
    return dict(inputs=[255 * torch.rand(3, *size) for _ in samples],
                data_samples=samples)


def losses_of(model, batch):
    return model(**model.data_preprocessor(batch, True), mode='loss')


def test_number_of_parameters_of_the_paper():
    with torch.device('meta'):
        model = TTSR()
    # Input and output channels of VGG19's layers to relu3_1.
    pairs = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256))
    assert sum(p.numel() for p in model.textures.parameters()) == sum(
        9 * a * b + b for a, b in pairs)
    assert len(model.first) == 17 and [
        [len(body) for body in bodies] for bodies in model.bodies] == [
            [17], [9, 9], [5, 5, 5]]


def test_every_parameter_learns():
    model = build()
    losses = losses_of(model, batch_of())
    assert set(losses) == {'loss_l1', 'loss_perceptual'}
    sum(losses.values()).backward()
    assert without_gradient(model) == []


def test_the_perceptual_loss_changes_only_the_image():
    model, batch = build(), batch_of()
    images = torch.randn(2, 3, 32, 36, requires_grad=True)
    textures = [torch.randn(2, channels, 8 * scale, 9 * scale, requires_grad=True)
                for channels, scale in ((8, 1), (6, 2), (4, 4))]
    model._enlarge = lambda *args: (images, textures)
    losses_of(model, batch)['loss_perceptual'].backward()
    assert images.grad.any()
    assert all(p.grad is None for p in (*textures, *model.parameters()))


def test_without_a_reference_it_is_plain_super_resolution():
    model = build()
    batch = batch_of(references=False)
    losses = losses_of(model, batch)
    assert set(losses) == {'loss_l1'}
    losses['loss_l1'].backward()
    assert all(p.grad is None for p in model.textures.parameters())
    image = 255 * torch.rand(1, 3, 7, 9)
    out = model.restore(image)
    assert out.shape == (1, 3, 28, 36)
    assert not torch.equal(out, model.restore(image, 255 * torch.rand(1, 3, 16, 16)))


@pytest.mark.parametrize('size', [(1, 1), (8, 9), (13, 5)])
@pytest.mark.parametrize('ref_size', [(12, 12), (31, 22), (40, 15)])
def test_any_size(size, ref_size):
    model = build(add_bicubic=True)
    images, reference = 255 * torch.rand(2, 3, *size), 255 * torch.rand(2, 3, *ref_size)
    out = model.restore(images, reference)
    assert out.shape == (2, 3, *(4 * side for side in size))
    assert out.min() >= 0 and out.max() <= 255
    torch.testing.assert_close(
        out[1:], model.restore(images[1:], reference[1:]), rtol=1e-4, atol=1e-2)


def test_several_references():
    model, image = build(), 255 * torch.rand(1, 3, 8, 8)
    first, second = (255 * torch.rand(1, 3, *size) for size in ((16, 20), (24, 13)))
    out = model.restore(image, [first, second])
    assert not torch.equal(out, model.restore(image, first))
    # The same reference twice gives the same result.
    torch.testing.assert_close(
        model.restore(image, [first, first]), model.restore(image, first))


def test_predicted_images_are_those_of_restore():
    model, batch = build(), batch_of()
    samples = model(**model.data_preprocessor(batch), mode='predict')
    for image, sample in zip(batch['inputs'], samples):
        expected = model.restore(
            image.flip(0)[None], sample.ref_img.float().flip(0)[None])[0].flip(0)
        torch.testing.assert_close(
            sample.pred_img.clamp(0, 255), expected, rtol=1e-4, atol=1e-2)


def test_texture_transformer_equals_the_papers():
    layer = TextureTransformer(4, 3)
    x, texture = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8, 8)
    soft = torch.rand(1, 1, 4, 4)
    large = F.interpolate(soft, scale_factor=2, mode='bicubic')
    torch.testing.assert_close(
        layer(x, texture, soft), x + layer.fuse(torch.cat([x, texture], 1)) * large)
    assert torch.equal(layer(x, texture, torch.zeros(1, 1, 8, 8)), x)


def test_each_scale_reads_all_scales():
    layer = CrossScaleIntegration(4, 3)
    maps = [torch.randn(1, 4, 3 * 2**i, 5 * 2**i, requires_grad=True) for i in range(3)]
    for out in layer(maps):
        grads = torch.autograd.grad(out.sum(), maps, retain_graph=True)
        assert all(grad.any() for grad in grads)
    assert [x.shape for x in layer(maps)] == [x.shape for x in maps]


@pytest.mark.parametrize('args, error, text', [
    (dict(blocks=(1, 1, 1)), ValueError, 'blocks must be four'),
    (dict(texture_channels=(4, 8)), ValueError, 'texture_channels three'),
    (dict(perceptual_weight=-1), ValueError, 'perceptual_weight'),
    (dict(add_bicubic='no'), TypeError, 'add_bicubic'),
])
def test_bad_arguments(args, error, text):
    with pytest.raises(error, match=text):
        TTSR(**dict(SMALL, **args))


def test_bad_inputs():
    model, image = build(), torch.rand(1, 3, 8, 8)
    for shape, text in (((1, 3, 11, 30), 'reference must be .* at least 12'),
                        ((2, 3, 20, 30), 'reference must be'),
                        ((1, 1, 20, 30), 'reference must')):
        with pytest.raises(ValueError, match=text):
            model.restore(image, torch.rand(shape))
    batch = batch_of()
    del batch['data_samples'][0].ref_img
    with pytest.raises(ValueError, match='must have references of one size'):
        losses_of(model, batch)
    batch = batch_of()
    for sample in batch['data_samples']:
        sample.gt_img = torch.zeros(3, 8, 9)
    with pytest.raises(ValueError, match='clean images must be'):
        losses_of(model, batch)


def draw(folder, names, size=(40, 44)):
    for i, name in enumerate(names):
        image = np.full((*size, 3), 40 * i, np.uint8)
        cv2.circle(image, (20 + i, 20), 9, (30, 200, 90), -1)
        mmcv.imwrite(image, str(folder / name))


def names_of(data):
    return [tuple(item[key].rsplit('/', 1)[1] for key in ('img_path', 'ref_path'))
            for item in map(data.get_data_info, range(len(data)))]


def test_references_from_frames(tmp_path):
    draw(tmp_path, ['a1.png', 'a2.png', 'a3.png', 'b1.png', 'b2.png', 'b3.png'])
    args = dict(type='ReferencePairs', data_root=str(tmp_path))
    assert names_of(DATASETS.build(dict(args, sequences=['a', 'b']))) == [
        ('a1.png', 'a2.png'), ('a2.png', 'a1.png'), ('a3.png', 'a2.png'),
        ('b1.png', 'b2.png'), ('b2.png', 'b1.png'), ('b3.png', 'b2.png')]
    assert names_of(DATASETS.build(dict(args, distance=4)))[-1] == ('b3.png', 'a2.png')
    with pytest.raises(ValueError, match='at least 4 frames for distance=3, got 3'):
        DATASETS.build(dict(args, sequences=['a'], distance=3))
    with pytest.raises(FileNotFoundError, match='data_root and data_prefix must'):
        DATASETS.build(dict(args, data_root=str(tmp_path / 'none')))


def test_listed_pairs(tmp_path):
    draw(tmp_path, ['x.png', 'y.png'])
    listed = tmp_path / 'pairs.txt'
    listed.write_text('x.png\ty.png\n\ny.png\tx.png\n')
    args = dict(type='ReferencePairs', ann_file=str(listed), data_root=str(tmp_path))
    assert names_of(DATASETS.build(args)) == [('x.png', 'y.png'), ('y.png', 'x.png')]
    listed.write_text('x.png y.png\n')
    with pytest.raises(ValueError, match='two paths with a tabulator'):
        DATASETS.build(args)
    listed.write_text('x.png\tz.png\n')
    with pytest.raises(FileNotFoundError, match='z.png, in .*pairs.txt'):
        DATASETS.build(args)


def test_relative_lists_and_one_reference_for_all(tmp_path):
    draw(tmp_path / 'clips', ['x.png', 'y.png'])
    draw(tmp_path, ['r.png'])
    (tmp_path / 'pairs.txt').write_text('x.png\ty.png\n')
    args = dict(type='ReferencePairs', data_root=str(tmp_path),
                data_prefix=dict(img_path='clips'))
    assert names_of(DATASETS.build(dict(args, ann_file='pairs.txt'))) == [
        ('x.png', 'y.png')]
    assert names_of(DATASETS.build(dict(args, reference='r.png'))) == [
        ('x.png', 'r.png'), ('y.png', 'r.png')]
    assert names_of(DATASETS.build(dict(args, reference='r.png', sequences=['x']))) \
        == [('x.png', 'r.png')]
    # Absolute paths need no data_root.
    (tmp_path / 'whole.txt').write_text(
        f'{tmp_path / "clips/y.png"}\t{tmp_path / "r.png"}\n')
    assert names_of(DATASETS.build(dict(
        type='ReferencePairs', ann_file=str(tmp_path / 'whole.txt')))) == [
            ('y.png', 'r.png')]
    with pytest.raises(ValueError, match='data_prefix must have the folder img_path'):
        DATASETS.build(dict(args, data_prefix=dict(other='clips')))
    with pytest.raises(FileNotFoundError, match='reference must be a file, and .*z'):
        DATASETS.build(dict(args, reference='z.png'))
    with pytest.raises(ValueError, match='at least 1 frames .* got 0'):
        DATASETS.build(dict(args, reference='r.png', sequences=['z']))
    with pytest.raises(ValueError, match='reference must be empty with ann_file'):
        DATASETS.build(dict(args, reference='r.png', ann_file='pairs.txt'))


@pytest.mark.parametrize('margin', [0, 4])
def test_crops_have_the_same_position(margin):
    image = np.arange(40 * 48, dtype=np.int32).reshape(40, 48, 1)
    crop = TRANSFORMS.build(dict(type='CropWithReference', size=16, margin=margin))
    for _ in range(10):
        results = crop.transform(dict(img=image, ref_img=image))
        assert results['img'].shape == (16, 16, 1)
        assert results['ref_img'].shape == (16 + 2 * margin, 16 + 2 * margin, 1)
        assert np.isin(results['img'], results['ref_img']).all()
    alone = crop.transform(dict(img=image))
    assert alone['img'].shape == (16, 16, 1) and 'ref_img' not in alone
    with pytest.raises(ValueError, match=f'references must .* {16 + 2 * margin}, got'):
        crop.transform(dict(img=image, ref_img=image[:15]))
    with pytest.raises(ValueError, match='images must have sides of at least 16'):
        crop.transform(dict(img=image[:10], ref_img=image))


PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadReference'),
            dict(type='CropWithReference', size=32),
            dict(type='Degrade', tasks='sr4', seed=0), dict(type='PackImage')]


def test_trains_from_frames_and_restores_a_file(tmp_path):
    draw(tmp_path / 'frames', ['1.png', '2.png', '3.png'])
    data = DATASETS.build(dict(type='ReferencePairs', pipeline=PIPELINE,
                               data_root=str(tmp_path / 'frames')))
    model = build(add_bicubic=True)

    def loss():
        batch = pseudo_collate([data[i] for i in range(3)])
        return sum(losses_of(model, batch).values())

    found = descend(model, loss, 30, 2e-3)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:3])
    Config(dict(default_scope='mmengine', model=dict(
        SMALL, type='TTSR', add_bicubic=True))).dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')

    def run(*args):
        return restore.main(restore.parser().parse_args([
            str(tmp_path / 'config.py'), str(tmp_path / 'model.pth'),
            str(tmp_path / 'frames/2.png'), '--degrade', '--force', '--out',
            str(tmp_path / 'out.png'), *args]))

    alone = run()
    other = run('--reference', str(tmp_path / 'frames/1.png'),
                str(tmp_path / 'frames/3.png'))
    assert other['psnr'] != alone['psnr'] and other['psnr'] > 15
    image = cv2.imread(str(tmp_path / 'frames/2.png'))
    height, width = (side // 4 * 4 for side in image.shape[:2])
    cv2.imwrite(str(tmp_path / 'cut.png'), 255 - image[:-9, :-7])
    shown = run('--origin', '--reference', str(tmp_path / 'frames/2.png'),
                str(tmp_path / 'cut.png'))
    origin = cv2.imread(shown['origin'])[..., ::-1]
    rows, columns = image.shape[0] + height, 2 * width + restore.GAP
    assert origin.shape == (rows, columns, 3)
    assert (origin[image.shape[0] - 9:image.shape[0], -30:] == 255).all()  # below cut
    # The image matches itself: its upper left corner has the colour of that place.
    first = origin[image.shape[0] + 10, 10].astype(int)
    assert np.abs(first - restore.CORNERS[0]).max() < 60
    with pytest.raises(ValueError, match='TTSR takes --task sr4'):
        run('--task', 'rain')
    with pytest.raises(ValueError, match='--origin needs --reference'):
        run('--origin')


def test_matches_name_the_place_in_each_reference():
    """The image is two parts of the references, reduced."""
    generator = torch.Generator().manual_seed(0)
    references = [
        255 * torch.rand(1, 3, *size, generator=generator, dtype=torch.float64)
        for size in ((80, 90), (94, 80))]
    model = build().double()
    parts = references[0][..., 8:72, 16:80], references[1][..., 24:88, 4:68]
    image = F.interpolate(torch.cat(parts, dim=3), scale_factor=1 / 4,
                          mode='bicubic', antialias=True)
    number, position, similarity = model.matches(image, references)
    assert number.shape == (1, 16, 32) and similarity.shape == (1, 1, 16, 32)
    inside = slice(5, 11)
    rows, columns = torch.meshgrid(4 * torch.arange(5, 11), 4 * torch.arange(5, 11),
                                   indexing='ij')
    for i, (top, left) in enumerate(((8, 16), (24, 4))):
        part = (0, inside, slice(16 * i + 5, 16 * i + 11))
        assert (number[part] == i).all()
        found = position[0][:, part[1], part[2]]
        assert torch.equal(found, torch.stack([rows + top, columns + left]))
        assert similarity[0, 0][part[1:]].min() > 0.99
    # Each image of a batch has its own references.
    other = [255 - x for x in references]
    both = model.matches(image.repeat(2, 1, 1, 1), [
        torch.cat(pair) for pair in zip(other, references)])
    assert torch.equal(both[0][1:], number) and torch.equal(both[1][1:], position)
    assert not torch.equal(both[1][:1], position)
    with pytest.raises(ValueError, match='reference must be at least one image'):
        model.matches(image, [])
    with pytest.raises(ValueError, match=r'reference must be \(1, 3, Hr, Wr\)'):
        model.matches(image, torch.cat([references[0]] * 2))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model, batch = build(), batch_of()
    with torch.autocast('cpu', dtype):
        losses = losses_of(model, batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(
        losses['loss_l1'], losses_of(model, batch)['loss_l1'], rtol=0.03, atol=0.01)
