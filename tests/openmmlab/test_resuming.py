"""The error of an impossible resume names the reasons, and load_from."""

import re

import pytest
import torch
from helpers.runs import alone
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from fpt_plugin.openmmlab import resuming

FPN = dict(type='BottomUpPyramid', in_channels=[4, 8], out_channels=8)
GRAFTED = dict(FPN, type='FPT', pyramid=dict(type='BottomUpPyramid'))
SGD = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
ADAM = dict(type='AdamW', lr=0.01, weight_decay=0.05)
BY_GROUPS = dict(norm_decay_mult=0, custom_keys=dict(neck=dict(lr_mult=2)))


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
        train_dataloader=dict(
            dataset=[dict(x=torch.rand(4, 16, 16)) for _ in range(2)],
            batch_size=2, sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=optimizer, paramwise_cfg=paramwise),
        log_level='ERROR', **settings)
    runner.train()
    return str(folder / f'epoch_{epochs}.pth')


def resume(folder, checkpoint, **settings):
    return train(folder / 'on', epochs=2, load_from=checkpoint, resume=True,
                 **settings)


def reasons_of(folder, checkpoint, **settings):
    """Return the reasons in the error."""
    message = re.escape(f"set load_from='{checkpoint}'")
    with pytest.raises(ValueError, match=message) as caught:
        resume(folder, checkpoint, **settings)
    return str(caught.value).partition(f'{checkpoint}: it ')[2]


@pytest.mark.parametrize('paramwise', [None, BY_GROUPS])
@pytest.mark.parametrize('optimizer', [SGD, ADAM])
def test_a_plain_checkpoint_with_a_graft(optimizer, paramwise, tmp_path):
    same = dict(optimizer=optimizer, paramwise=paramwise)
    checkpoint = train(tmp_path, **same)
    reasons = reasons_of(tmp_path, checkpoint, neck=GRAFTED, **same)
    assert reasons.startswith('was trained without ')
    assert 'neck.self_transformers.*' in reasons
    assert 'pyramid' not in reasons  # its keys are accepted
    assert 'another optimizer' not in reasons
    # The advice of the message works.
    train(tmp_path / 'new', neck=GRAFTED, load_from=checkpoint, **same)


WIDER = r'\[8, 8, 1, 1\] for .*\[5, 8, 1, 1\]'


@pytest.mark.parametrize('before, now, words', [
    (dict(neck=GRAFTED), {}, 'was trained with .*, which the model lacks'),
    (dict(paramwise=BY_GROUPS), {}, r'was trained with (\d+) tensors in \1 groups '
     r'of the optimizer, now there are \1 in 1'),
    ({}, dict(width=5), f'state of other parameters: momentum_buffer of {WIDER}'),
    (dict(optimizer=dict(SGD, momentum=0.)),
     dict(optimizer=dict(SGD, momentum=0.), width=5), f'another shape.*{WIDER}'),
    *((dict(optimizer=one), dict(optimizer=other, neck=neck),
       f'{start}with another optimizer than this {other["type"]}.*{old}.*instead '
       f'of.*{new}')
      for neck, start in ((FPN, '^was trained '), (GRAFTED, 'was trained without .*'))
      for one, other, old, new in (
          (SGD, ADAM, 'momentum', 'betas'), (ADAM, SGD, 'betas', 'momentum'))),
])
def test_other_models_and_optimizers(before, now, words, tmp_path):
    assert re.search(words, reasons_of(tmp_path, train(tmp_path, **before), **now))


def renamed(content):
    return dict(content, state_dict={
        key.replace('head.', 'other.'): value
        for key, value in content['state_dict'].items()})


@pytest.mark.parametrize('change, words', [
    # Without a check, the optimizer's state would be given to other parameters.
    (renamed, 'was trained without 2 tensors (head.*) and was trained with 2 '
     'tensors (other.*), which the model lacks'),
    (lambda content: dict(state_dict=content['state_dict']),
     'holds only weights, without meta and message_hub'),
    (lambda content: {key: content[key] for key in ('state_dict', 'meta')},
     'holds only weights, without message_hub')])
def test_changed_checkpoints(change, words, tmp_path):
    checkpoint = train(tmp_path)
    torch.save(change(torch.load(checkpoint)), checkpoint)
    assert reasons_of(tmp_path, checkpoint).startswith(words)


@pytest.mark.parametrize('neck', [FPN, GRAFTED])
@pytest.mark.parametrize('settings', [
    {}, dict(optimizer=dict(SGD, momentum=0.)),
    dict(optimizer=ADAM, paramwise=BY_GROUPS),
    dict(custom_hooks=[dict(type='EMAHook')]),
    dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', interval=1, save_optimizer=False)))])
def test_the_same_settings_resume(neck, settings, tmp_path):
    resume(tmp_path, train(tmp_path, neck=neck, **settings), neck=neck, **settings)
    assert (tmp_path / 'on/epoch_2.pth').exists()


def test_a_training_of_the_graft_only_resumes(tmp_path):
    """Frozen parameters have no state in the optimizer."""
    same = dict(neck=GRAFTED, optimizer=ADAM,
                custom_hooks=[dict(type='TrainGraftOnlyHook')])
    checkpoint = train(tmp_path, **same)
    resume(tmp_path, checkpoint, **same)
    resume(tmp_path, checkpoint, **dict(same, custom_hooks=None))


def test_the_fix_is_needed(tmp_path, monkeypatch):
    checkpoint = train(tmp_path)
    monkeypatch.setattr(Runner, 'resume', Runner.resume.__wrapped__)
    with pytest.raises(ValueError, match="doesn't match the size"):
        resume(tmp_path, checkpoint, neck=GRAFTED)
    with pytest.raises(KeyError, match='step'):
        resume(tmp_path, checkpoint, optimizer=ADAM)
    for _ in range(2):
        resuming.explain_failed_resumes()
        assert not hasattr(Runner.resume.__wrapped__, '__wrapped__')
    reasons_of(tmp_path, checkpoint, neck=GRAFTED)
