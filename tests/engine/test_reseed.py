"""A resumed training ends like the uninterrupted one."""

import os

import pytest
import torch
from helpers.toy_runs import train

from fpt_plugin.engine.reseed import reseed

HOOK = dict(type='fpt_plugin.ReseedHook')
BY_ITERATIONS = dict(by_epoch=False, max_iters=8)
LOOPS = {
    'epochs': dict(loop=None),
    'iterations': dict(
        loop=BY_ITERATIONS, sampler='InfiniteSampler',
        checkpoint=dict(by_epoch=False, interval=1)),
}
SEED = dict(randomness=dict(seed=3))


def weights(runner):
    return runner.model.weight.detach().clone()


def checkpoints(folder):
    names = [name for name in os.listdir(folder) if name.endswith('.pth')]
    # Nothing follows the last one.
    return sorted(names, key=lambda name: int(name[:-4].split('_')[1]))[:-1]


@pytest.mark.parametrize('hooks, settings', [
    ([HOOK], SEED), ([HOOK], {}), ([], SEED),
    pytest.param([HOOK], dict(SEED, workers=2), marks=pytest.mark.slow)])
@pytest.mark.parametrize('loop', LOOPS)
def test_equal_to_the_bit_with_the_hook(loop, hooks, settings, tmp_path):
    """Resume from each epoch, or every third iteration."""
    settings = dict(hooks=hooks, **LOOPS[loop], **settings)
    whole = weights(train(tmp_path / 'whole', **settings))
    begun = checkpoints(tmp_path / 'whole')
    assert len(begun) == (7 if settings['loop'] else 2)
    for name in begun[::3] if settings['loop'] else begun:
        resumed = train(
            tmp_path / 'resumed', resume=True,
            load_from=str(tmp_path / 'whole' / name), **settings)
        assert torch.equal(weights(resumed), whole) == bool(hooks), name


def test_random_numbers_of_a_validation_do_not_matter(tmp_path):
    settings = dict(hooks=[HOOK], **SEED)
    plain = train(tmp_path / 'plain', **settings)
    validated = train(tmp_path / 'validated', scores=[1, 2, 3], **settings)
    assert torch.equal(weights(plain), weights(validated))


def test_the_sampler_uses_the_seed_of_the_checkpoint(tmp_path):
    settings = dict(hooks=[HOOK], **LOOPS['epochs'])
    train(tmp_path / 'whole', randomness=dict(seed=5), **settings)
    runner = train(
        tmp_path / 'resumed', resume=True, randomness=dict(seed=7),
        load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), **settings)
    # mmengine uses the checkpoint's seed; the sampler had the run's.
    assert runner.seed == runner.train_dataloader.sampler.seed == 5


def test_seeds_and_epochs_are_not_added():
    drawn = set()
    for numbers in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2)):
        reseed(*numbers)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 6
