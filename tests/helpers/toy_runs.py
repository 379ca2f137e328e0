"""Trainings of a toy model by mmengine's runner, with every random generator."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from helpers.runs import alone

COUNT = 6  # samples; three iterations an epoch


class Toy(BaseModel):
    """Learn zero weights, with dropout."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x, mode='tensor'):
        y = torch.stack(x) * self.weight
        y = torch.nn.functional.dropout(y, 0.5, self.training)
        return dict(loss=y.square().mean()) if mode == 'loss' else y


class Noise(Dataset):
    """Draw each sample with all random number generators."""

    metainfo = dict(classes=('noise', ))

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return dict(
            x=torch.rand(8) + index + random.random() + float(np.random.rand()))


class Scores(BaseMetric):
    """Return given scores, and draw a random number for each sample."""

    scores: list = []

    def process(self, data_batch, data_samples):
        self.results.append(float(np.random.rand()))

    def compute_metrics(self, results):
        score = self.scores.pop(0)
        return dict(acc=score, loss=score)


@alone()
def train(*args, **kwargs):
    """Train; return the runner. The arguments are those of :func:`untrained`."""
    runner = untrained(*args, **kwargs)
    runner.train()
    return runner


def untrained(work_dir, loop=None, hooks=(), checkpoint=None, scores=(),
              sampler='DefaultSampler', workers=0, **settings):
    """Build the runner of a training, by default of three epochs.

    Args:
        work_dir: Work folder of mmengine.
        loop, hooks, checkpoint: Settings of the loop, custom hooks, and settings of the
            checkpoint hook.
        scores: Score of each validation; empty: no validation.
        sampler, workers: Type of the sampler, and processes that load data.
        settings: Settings of the runner.
    """
    Scores.scores = list(scores)
    validated = dict(
        val_dataloader=dict(
            dataset=Noise(), batch_size=3,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=Evaluator([Scores()]), val_cfg=dict()) if scores else {}
    return Runner(
        model=Toy(), work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Noise(), batch_size=2, num_workers=workers,
            sampler=dict(type=sampler, shuffle=True)),
        train_cfg=loop or dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(
            dict(type='CheckpointHook', interval=1), **checkpoint or {})),
        custom_hooks=list(hooks), log_level='ERROR', **validated, **settings)
