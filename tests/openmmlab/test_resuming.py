"""What a training cannot go on from is named, with load_from as the cure."""

import re

import pytest
import torch
from helpers.runs import alone
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from fpt_plugin.openmmlab import resuming

FPN = dict(type='BottomUpPyramid', in_channels=[4, 8], out_channels=8)
GRAFTED = dict(FPN, type='FPT', pyramid=dict(type='BottomUpPyramid'))
SGD = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
ADAM = dict(type='AdamW', lr=0.01, weight_decay=0.05)
BY_GROUPS = dict(norm_decay_mult=0, custom_keys=dict(neck=dict(lr_mult=2)))


class Maps(Dataset):
    """Random images."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(x=torch.rand(4, 16, 16))


class Detector(BaseModel):
    """A backbone of one convolution, a neck and no head."""

    def __init__(self, neck, width=8):
        super().__init__()
        self.backbone = nn.Conv2d(4, 8, 3, 2, 1)
        self.neck = MODELS.build(dict(neck))
        self.head = nn.Conv2d(8, width, 1)

    def forward(self, x, mode='loss'):
        x = torch.stack(x)
        outs = self.neck((x, self.backbone(x)))
        return dict(loss=sum(self.head(out).square().mean() for out in outs))


@alone()
def train(folder, neck=FPN, optimizer=SGD, paramwise=None, width=8, epochs=1,
          **settings):
    runner = Runner(
        Detector(neck, width), str(folder),
        train_dataloader=dict(dataset=Maps(), batch_size=2,
                              sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=optimizer, paramwise_cfg=paramwise),
        log_level='ERROR', **settings)
    runner.train()
    return str(folder / f'epoch_{epochs}.pth')


def resume(folder, checkpoint, **settings):
    return train(folder / 'on', epochs=2, load_from=checkpoint, resume=True,
                 **settings)


def refused(folder, checkpoint, **settings):
    """The reasons."""
    message = re.escape(f"set load_from='{checkpoint}'")
    with pytest.raises(ValueError, match=message) as caught:
        resume(folder, checkpoint, **settings)
    return str(caught.value).partition(f'{checkpoint}: it ')[2]


@pytest.mark.parametrize('paramwise', [None, BY_GROUPS])
@pytest.mark.parametrize('optimizer', [SGD, ADAM])
def test_a_plain_checkpoint_onto_a_graft(optimizer, paramwise, tmp_path):
    same = dict(optimizer=optimizer, paramwise=paramwise)
    checkpoint = train(tmp_path, **same)
    reasons = refused(tmp_path, checkpoint, neck=GRAFTED, **same)
    assert reasons.startswith('was trained without ')
    assert 'neck.self_transformers.*' in reasons
    assert 'pyramid' not in reasons and 'with' in reasons  # they are there
    assert 'another optimizer' not in reasons
    # What is said to do works.
    train(tmp_path / 'new', neck=GRAFTED, load_from=checkpoint, **same)


def test_a_graft_onto_the_plain_model(tmp_path):
    checkpoint = train(tmp_path, neck=GRAFTED)
    assert 'was trained with ' in refused(tmp_path, checkpoint)


@pytest.mark.parametrize('before, now, words', [
    (SGD, ADAM, r'another optimizer than this AdamW.*momentum.*instead of.*betas'),
    (ADAM, SGD, r'another optimizer than this SGD.*betas.*instead of.*momentum'),
])
@pytest.mark.parametrize('neck', [FPN, GRAFTED])
def test_another_optimizer(before, now, words, neck, tmp_path):
    checkpoint = train(tmp_path, optimizer=before)
    reasons = refused(tmp_path, checkpoint, optimizer=now, neck=neck)
    assert re.search(words, reasons)
    assert ('was trained without' in reasons) == (neck is GRAFTED)


@pytest.mark.parametrize('momentum', [0., 0.9])
def test_a_head_of_another_width(momentum, tmp_path):
    same = dict(optimizer=dict(SGD, momentum=momentum))
    checkpoint = train(tmp_path, **same)
    reasons = refused(tmp_path, checkpoint, width=5, **same)
    assert '[8, 8, 1, 1]' in reasons and '[5, 8, 1, 1]' in reasons
    resume(tmp_path / 'same', checkpoint, **same)


def test_other_groups_of_the_optimizer(tmp_path):
    checkpoint = train(tmp_path, paramwise=BY_GROUPS)
    assert re.match(r'was trained with (\d+) tensors in \1 groups of the '
                    r'optimizer, where there are \1 in 1',
                    refused(tmp_path, checkpoint))


def test_as_many_parameters_of_other_shapes(tmp_path):
    checkpoint = train(tmp_path)
    assert 'momentum_buffer of [8, 8, 1, 1] for one of [5, 8, 1, 1]' in refused(
        tmp_path, checkpoint, width=5)


def test_as_many_parameters_of_other_names(tmp_path):
    """The optimizer's state would go to others in silence."""

    def renamed(checkpoint):
        content = torch.load(checkpoint)
        content['state_dict'] = {
            key.replace('head.', 'other.'): value
            for key, value in content['state_dict'].items()}
        torch.save(content, checkpoint)
        return checkpoint

    reasons = refused(tmp_path, renamed(train(tmp_path)))
    assert reasons.startswith('was trained without 2 tensors (head.*) and was '
                              'trained with 2 tensors (other.*), which the model')


@pytest.mark.parametrize('kept', [['state_dict'], ['state_dict', 'meta']])
def test_weights_alone(kept, tmp_path):
    checkpoint = train(tmp_path)
    content = torch.load(checkpoint)
    torch.save({key: content[key] for key in kept}, checkpoint)
    assert refused(tmp_path, checkpoint).startswith('holds weights alone, without')


@pytest.mark.parametrize('neck', [FPN, GRAFTED])
@pytest.mark.parametrize('settings', [
    {}, dict(optimizer=ADAM, paramwise=BY_GROUPS),
    dict(custom_hooks=[dict(type='EMAHook')]),
    dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', interval=1, save_optimizer=False)))])
def test_what_fits_goes_on(neck, settings, tmp_path):
    resume(tmp_path, train(tmp_path, neck=neck, **settings), neck=neck, **settings)
    assert (tmp_path / 'on/epoch_2.pth').exists()


def test_a_graft_that_learns_alone_goes_on(tmp_path):
    """The frozen rest has no state in the optimizer."""
    same = dict(neck=GRAFTED, optimizer=ADAM,
                custom_hooks=[dict(type='TrainGraftOnlyHook')])
    checkpoint = train(tmp_path, **same)
    resume(tmp_path, checkpoint, **same)
    resume(tmp_path, checkpoint, **dict(same, custom_hooks=None))


def test_names_of_a_plain_pyramid_are_its_own():
    model = Detector(GRAFTED)
    state = {key.replace('neck.pyramid', 'neck'): value
             for key, value in model.state_dict().items()}
    checkpoint = dict(meta={}, message_hub={}, state_dict=state)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    assert not list(resuming.what_differs(checkpoint, model, wrapper))


def test_the_mend_is_needed(tmp_path, monkeypatch):
    checkpoint = train(tmp_path)
    monkeypatch.setattr(Runner, 'resume', Runner.resume.__wrapped__)
    with pytest.raises(ValueError, match="doesn't match the size"):
        resume(tmp_path, checkpoint, neck=GRAFTED)
    with pytest.raises(KeyError, match='step'):
        resume(tmp_path, checkpoint, optimizer=ADAM)
    for _ in range(2):
        resuming.name_what_cannot_be_resumed()
        assert not hasattr(Runner.resume.__wrapped__, '__wrapped__')
    refused(tmp_path, checkpoint, neck=GRAFTED)
