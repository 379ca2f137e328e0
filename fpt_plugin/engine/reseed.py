"""Make the random numbers of a resumed training reproducible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, set_random_seed

from ..openmmlab.registry import register


@register(HOOKS)
class ReseedHook(Hook):
    """Makes a resumed training end like an uninterrupted one.

    mmengine's checkpoints hold no random state, so augmentation, sampling and
    dropout of a resumed training differ from those of the uninterrupted one.
    This hook seeds python, numpy and torch from the run's seed and the epoch
    before each epoch, or from the seed and the iteration before each batch of
    an iteration-based loop. As everywhere in mmengine, the run's seed includes
    the rank if ``randomness=dict(diff_rank_seed=True)``. If the config sets no
    seed, the hook uses the checkpoint's, also for the sampler. Add it by
    ``custom_hooks=[dict(type='fpt_plugin.ReseedHook')]``. The results differ
    from those of the same seed without the hook.

    The parameters are bitwise equal if data are loaded with ``num_workers=0``,
    the number of processes is the same, and

    - an epoch-based training resumes from the checkpoint of an epoch;
    - the operations are deterministic: a CPU with the same number of threads,
      or a GPU with ``randomness=dict(deterministic=True)``.

    Loading workers have their own seeds, which start again with the workers.
    With the same number of workers and the same ``randomness.seed``, they
    repeat in iteration-based loops, and in epoch-based loops with
    ``persistent_workers=False``. Counters that are not in the checkpoint start
    again at 0, such as those of mmdet's DropBlock and mmengine's
    EarlyStoppingHook.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Store the seed that the sampler has."""
        self._seed = runner.seed

    def before_train(self, runner) -> None:
        """Apply the seed of the checkpoint, which has been loaded now."""
        loader = runner.train_loop.dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler',
                                                None)):
            if getattr(sampler, 'seed', None) == self._seed:
                sampler.seed = runner.seed
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            if loader.generator is None:
                # Without a generator each new iterator draws a global random
                # number, at a batch that depends on the version of mmengine.
                loader.generator = torch.Generator().manual_seed(runner.seed)
            runner.train_loop.dataloader_iterator = _ReseedingIterator(
                runner.train_loop.dataloader_iterator, runner.seed,
                loader.num_workers > 0)

    def before_train_epoch(self, runner) -> None:
        """Seed the epoch; an iteration-based loop calls this once, at first."""
        reseed(runner.seed, runner.epoch)


class _ReseedingIterator(Iterator):
    """Endless batches, each loaded and trained on with its own seed.

    A resumed loop also skips the earlier batches, so the count stays the same.
    """

    def __init__(self, batches: Iterator, seed: int, by_workers: bool) -> None:
        self.batches, self.seed, self.by_workers = batches, seed, by_workers
        self.count = 0

    def __next__(self):
        reseed(self.seed, self.count)
        self.count += 1
        return next(self.batches)

    def skip_iter(self, count: int) -> None:
        """Skip batches without loading them (called by the onedl fork).

        Workers draw random numbers while they load, so their batches are loaded.
        """
        if self.by_workers:
            for _ in range(count):
                next(self)
        else:
            self.batches.skip_iter(count)
            self.count += count


def reseed(*numbers: int) -> None:
    """Seed python, numpy and torch from a hash of several numbers.

    Unlike their sum, it differs between (seed 1, epoch 2) and (seed 2, epoch 1).
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    set_random_seed(int.from_bytes(digest[:4], 'big'))  # numpy takes 32 bits
