"""What each process of a run leaves behind, for tests to compare."""

from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankHook(Hook):
    """Saves this process's losses and parameters after training."""

    def before_train(self, runner) -> None:
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self.losses.append(float(outputs['loss']))

    def after_train(self, runner) -> None:
        torch.save(
            dict(
                losses=self.losses,
                parameters={
                    name: p.detach()
                    for name, p in runner.model.named_parameters()
                }), Path(runner.work_dir, f'rank_{get_rank()}.pt'))
