"""The Look-up data set, and that each branch can learn it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS, MODELS
from scipy import ndimage
from torch import nn

from fpt_plugin.commands.study import look_up
from fpt_plugin.commands.study.look_up import LookUpBackbone, draw_look_up


def discs_of(image, labels):
    """Find (colour, label, centre) of each disc in the image."""
    found = []
    numbers, count = ndimage.label(labels != look_up.UNLABELLED)
    for number in range(1, count + 1):
        rows, columns = np.nonzero(numbers == number)
        mean = image[rows, columns].mean(axis=0)
        colour = int(np.square(mean - look_up.COLOURS).sum(axis=1).argmin())
        found.append((colour, int(labels[rows[0], columns[0]]),
                      (rows.mean(), columns.mean())))
    return found


@pytest.mark.parametrize('size', [96, 192])
def test_discs_have_the_label_of_their_colour(size):
    by_colour = {0: [], 1: [], 2: []}
    for index in range(20):
        image, labels = draw_look_up(index, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, look_up.UNLABELLED}
        discs = discs_of(image, labels)
        assert len(discs) == 6
        for colour, found in by_colour.items():
            label, = {label for c, label, _ in discs if c == colour}
            found.append(label)
    # The colour does not determine the label.
    assert all(0.2 < np.mean(found) < 0.8 for found in by_colour.values())


def test_discs_are_far_from_the_patch_of_their_colour():
    for index in range(10):
        image, labels = draw_look_up(index)
        hues = image / image.sum(axis=2, keepdims=True, dtype=float)
        for colour, _, centre in discs_of(image, labels):
            hue = look_up.COLOURS[colour] / look_up.COLOURS[colour].sum()
            same = np.abs(hues - hue).max(axis=2) < 0.08
            cells = same.reshape(3, 64, 3, 64).mean(axis=(1, 3))
            home = np.unravel_index(cells.argmax(), (3, 3))
            assert np.abs(np.array(centre) // 64 - home).max() == 2


def test_the_data_set_draws_its_indices():
    data = DATASETS.build(
        dict(type='LookUp', first=7, length=3,
             pipeline=[dict(type='DrawLookUp', size=96)]))
    assert len(data) == 3
    image, labels = draw_look_up(9, 96)
    assert np.array_equal(data[2]['img'], image)
    assert np.array_equal(data[2]['gt_seg_map'], labels)
    assert not np.array_equal(data[1]['img'], image)
    for size in (90, 97, 192.0):
        with pytest.raises(ValueError, match='multiple of 3 of at least 96'):
            look_up.DrawLookUp(size)


@pytest.mark.parametrize('args', [
    {}, dict(deeper=2), dict(lambda_layers=True)])
def test_backbone(args):
    backbone = LookUpBackbone(**args)
    maps = backbone(torch.rand(2, 3, 96, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (32, 24, 16), (48, 12, 8), (64, 6, 4), (64, 3, 2)]
    sum(x.sum() for x in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_the_patch_is_outside_the_receptive_field_of_an_fpn():
    """Pixels two cells away have no gradient, so FPN can only guess."""
    torch.manual_seed(0)
    backbone = LookUpBackbone().eval()
    neck = MODELS.build(
        dict(type='mmdet.FPN', in_channels=[32, 48, 64, 64], out_channels=8,
             num_outs=4))
    image = torch.rand(1, 3, 192, 192, requires_grad=True)
    maps = neck(backbone(image))
    for x in maps:
        stride = 192 // x.shape[2]
        # The rightmost pixels of a disc in the first column of cells. Its patch
        # starts after the second column.
        column = int(0.88 * 64 + 6) // stride
        grad, = torch.autograd.grad(
            x[..., column].sum(), image, retain_graph=True)
        assert grad[..., :64].any() and not grad[..., 128 + 4:].any(), stride


class TwoLevels(nn.Module):
    """A network with a receptive field of about 40 of 96 pixels without its neck."""

    def __init__(self, neck: str):
        super().__init__()
        self.fine = nn.Sequential(
            look_up._convolution(3, 16, 2), look_up._convolution(16, 32, 2))
        self.coarse = look_up._convolution(32, 32, 2)
        self.neck = MODELS.build(
            dict(type=neck, in_channels=[32, 32], out_channels=32, num_outs=2))
        self.neck.init_weights()
        self.head = nn.Sequential(
            nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 2, 1))

    def forward(self, x):
        """(B, 3, H, W) -> scores (B, 2, H, W)."""
        fine = self.fine(x)
        fine, coarse = self.neck((fine, self.coarse(fine)))
        coarse = F.interpolate(coarse, size=fine.shape[2:])
        return F.interpolate(
            self.head(torch.cat([fine, coarse], 1)), scale_factor=4)


def drawn(first: int, count: int):
    images, labels = zip(*(draw_look_up(first + i, 96) for i in range(count)))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (x - 128) / 64, torch.from_numpy(np.stack(labels)).long()


def accuracy_after_training(neck: str, steps: int) -> float:
    torch.manual_seed(0)
    net, (images, labels) = TwoLevels(neck), drawn(1000, 512)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (8, ))
        loss = F.cross_entropy(net(images[chosen]), labels[chosen],
                               ignore_index=look_up.UNLABELLED)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    images, labels = drawn(0, 50)
    with torch.no_grad():
        found = net.eval()(images).argmax(1)
    labelled = labels != look_up.UNLABELLED
    return float((found[labelled] == labels[labelled]).float().mean())


# A Rendering Transformer has only one weight per channel and image.
@pytest.mark.slow
@pytest.mark.parametrize('neck, least, most', [
    ('mmdet.FPN', 0, 0.65), ('SelfTransformerNeck', 0.97, 1),
    ('GroundingTransformerNeck', 0.97, 1),
    ('RenderingTransformerNeck', 0.7, 1)])
def test_each_branch_learns_what_a_pyramid_cannot(neck, least, most):
    assert least <= accuracy_after_training(neck, 300) <= most
