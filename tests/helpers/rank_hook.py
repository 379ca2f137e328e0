"""A hook that lets tests compare the processes of a run."""

from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankHook(Hook):
    """Save the losses and the final parameters of this process."""

    def before_train(self, runner) -> None:
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self.losses.append(float(outputs['loss']))

    def after_train(self, runner) -> None:
        parameters = {n: p.detach() for n, p in runner.model.named_parameters()}
        torch.save(dict(losses=self.losses, parameters=parameters),
                   Path(runner.work_dir, f'rank_{get_rank()}.pt'))
