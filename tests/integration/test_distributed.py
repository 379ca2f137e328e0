"""Two processes, each with half of the batch, learn what one would."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import parallel_nets, refused_nets
from helpers.oracles import relative_error
from helpers.processes import together
from torch.multiprocessing import ProcessRaisedException

BOTH = {torch.float32: 1e-5, torch.float64: 1e-13}
all_nets = pytest.mark.parametrize('name', parallel_nets.NETS)


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes: sums are rounded in another order by two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def errors_of(got, want) -> dict[str, float]:
    """Of each parameter's gradient; none of them may be missing."""
    assert got.keys() == want.keys()
    assert not [name for name, grad in got.items() if grad is None]
    return {name: relative_error(got[name], want[name]) for name in want}


@pytest.fixture(scope='module')
def of_ddp(tmp_path_factory):
    return together(
        parallel_nets.of_ddp, folder=tmp_path_factory.mktemp('processes'))


@all_nets
@pytest.mark.parametrize('dtype', BOTH)
def test_gradients_are_those_of_the_joined_batch(name, dtype, of_ddp):
    """With frozen batch norms and a mean over equally many pixels."""
    want = parallel_nets.of_one_process(name, dtype)
    for of_rank in of_ddp:
        errors = errors_of(of_rank[name, dtype], want)
        assert max(errors.values()) <= BOTH[dtype], errors


@all_nets
def test_half_of_the_batch_has_other_gradients(name):
    """Or the comparison above would show nothing."""
    whole, half = (
        parallel_nets.of_one_process(name, torch.float32, images)
        for images in (slice(None), slice(parallel_nets.BATCH // 2)))
    assert min(errors_of(half, whole).values()) > 100 * BOTH[torch.float32]


def test_a_parameter_without_a_gradient_is_noticed(tmp_path):
    with pytest.raises(ProcessRaisedException, match='finished reduction'):
        together(refused_nets.train_unused, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('sharded', ['of_fsdp', 'of_fully_shard'])
def test_gradients_of_sharded_layers(sharded, tmp_path):
    """Each branch and each block is gathered and freed by itself."""
    found = together(getattr(parallel_nets, sharded), folder=tmp_path)
    for name in parallel_nets.NETS:
        want = parallel_nets.of_one_process(name, torch.float32)
        for of_rank in found:
            grads, units = of_rank[name]
            assert max(errors_of(grads, want).values()) <= BOTH[torch.float32]
            kinds = Counter(units)
            assert kinds['SelfTransformer'] == 4
            assert kinds['RenderingTransformer'] == 6
            assert kinds['GroundingTransformer'] + kinds[
                'LocalGroundingTransformer'] == 6
            # eight residual blocks, and nothing else
            assert kinds['BasicBlock'] + kinds['Bottleneck'] == 8
            assert sum(kinds.values()) == 24


def test_sync_bn_needs_cuda(tmp_path):
    """What the tools refuse beforehand; even one process is too many."""
    with pytest.raises(ProcessRaisedException, match='only work with GPU'):
        together(refused_nets.wrap_sync_bn, folder=tmp_path, count=1)
