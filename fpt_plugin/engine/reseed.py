"""Random numbers that a resumed training draws again."""

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
    """Lets a resumed training end as it would have ended uninterrupted.

    mmengine's checkpoints hold no random state: a resumed training augments,
    samples and drops out otherwise than the uninterrupted one. With this hook
    python, numpy and torch are seeded anew from the run's seed and the number
    of the epoch before each epoch, or of the iteration before each batch where
    the loop counts iterations. The run's seed counts the rank in where
    ``randomness=dict(diff_rank_seed=True)``, as everywhere in mmengine; where
    the config names no seed, it is that of the checkpoint, for the sampler
    too. It is ``custom_hooks=[dict(type='fpt_plugin.ReseedHook')]``, and the
    results are not those of the same seed without the hook.

    The parameters are equal to the bit where the data are loaded by
    ``num_workers=0``, the number of processes is the same, and

    - a training by epochs resumes from the checkpoint of an epoch;
    - the operations are deterministic: those of a CPU with the same number of
      threads; on a GPU that takes ``randomness=dict(deterministic=True)``.

    Workers that load data have seeds of their own, which start over with the
    workers: they repeat in a loop by iterations, and with
    ``persistent_workers=False`` in one by epochs, if their number and
    ``randomness.seed`` are the same. What a module or a hook counts by itself
    and keeps out of the checkpoint starts over, mmdet's DropBlock and
    mmengine's EarlyStoppingHook among them.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Note the seed that the sampler was given."""
        self._seed = runner.seed

    def before_train(self, runner) -> None:
        """After the checkpoint was read: see that its seed counts."""
        loader = runner.train_loop.dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler',
                                                None)):
            if getattr(sampler, 'seed', None) == self._seed:
                sampler.seed = runner.seed
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            if loader.generator is None:
                # Else each iterator takes a number from those of a batch, and
                # not every mmengine makes it at the same batch.
                loader.generator = torch.Generator().manual_seed(runner.seed)
            runner.train_loop.dataloader_iterator = _Reseeding(
                runner.train_loop.dataloader_iterator, runner.seed,
                loader.num_workers > 0)

    def before_train_epoch(self, runner) -> None:
        """Seed anew; a loop by iterations calls it once, before all."""
        reseed(runner.seed, runner.epoch)


class _Reseeding(Iterator):
    """Batches without an end, each drawn and trained on under its own seed.

    A resumed loop passes by the batches of the past, too, so it counts them
    alike.
    """

    def __init__(self, batches: Iterator, seed: int, by_workers: bool) -> None:
        self.batches, self.seed, self.by_workers = batches, seed, by_workers
        self.count = 0

    def __next__(self):
        reseed(self.seed, self.count)
        self.count += 1
        return next(self.batches)

    def skip_iter(self, count: int) -> None:
        """Pass by batches, which the fork's loop does not load again.

        Workers draw numbers of their own as they load, so theirs are loaded.
        """
        if self.by_workers:
            for _ in range(count):
                next(self)
        else:
            self.batches.skip_iter(count)
            self.count += count


def reseed(*numbers: int) -> None:
    """Seed python, numpy and torch from several numbers, not from their sum.

    So seed 1 in epoch 2 is another one than seed 2 in epoch 1.
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    set_random_seed(int.from_bytes(digest[:4], 'big'))  # numpy takes 32 bits
