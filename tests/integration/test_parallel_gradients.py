"""Two processes with half of the batch each have the gradients of one process."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import parallel_nets
from helpers.oracles import relative_error
from helpers.processes import together

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}
all_nets = pytest.mark.parametrize('name', parallel_nets.NETS)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, as the processes do: the order of sums depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def errors_of(got, want) -> dict[str, float]:
    """Return the error of each parameter's gradient; none may be missing."""
    assert got.keys() == want.keys()
    assert not [name for name, grad in got.items() if grad is None]
    return {name: relative_error(got[name], want[name]) for name in want}


@pytest.fixture(scope='module')
def of_ddp(tmp_path_factory):
    return together(
        parallel_nets.of_ddp, folder=tmp_path_factory.mktemp('processes'))


@all_nets
@pytest.mark.parametrize('dtype', TOLERANCES)
def test_gradients_equal_those_of_the_whole_batch(name, dtype, of_ddp):
    """Batch norms are frozen, and the mean is over equally many pixels."""
    want = parallel_nets.of_one_process(name, dtype)
    for of_rank in of_ddp:
        errors = errors_of(of_rank[name, dtype], want)
        assert max(errors.values()) <= TOLERANCES[dtype], errors


@all_nets
def test_half_of_the_batch_has_other_gradients(name):
    """Show that the comparison above can fail."""
    whole, half = (parallel_nets.of_one_process(name, torch.float32, part)
                   for part in (slice(None), slice(parallel_nets.BATCH // 2)))
    assert min(errors_of(half, whole).values()) > 100 * TOLERANCES[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize('sharded', ['of_fsdp', 'of_fully_shard'])
def test_gradients_of_sharded_layers(sharded, tmp_path):
    """Each branch and each residual block is gathered and freed separately."""
    found = together(getattr(parallel_nets, sharded), folder=tmp_path)
    for name in parallel_nets.NETS:
        want = parallel_nets.of_one_process(name, torch.float32)
        for of_rank in found:
            grads, units = of_rank[name]
            assert max(errors_of(grads, want).values()) <= TOLERANCES[torch.float32]
            kinds = Counter(units)
            assert kinds['SelfTransformer'] == 4
            assert kinds['RenderingTransformer'] == 6
            assert kinds['GroundingTransformer'] + kinds[
                'LocalGroundingTransformer'] == 6
            assert kinds['BasicBlock'] + kinds['Bottleneck'] == 8
            assert sum(kinds.values()) == 24
