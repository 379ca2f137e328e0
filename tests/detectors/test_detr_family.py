"""FPT between the backbone and the transformer of the DETR family."""

from __future__ import annotations

import pytest
import torch
from helpers.shipped_configs import ALL, host_of
from helpers.small_detrs import batch, make
from mmengine.runner import load_checkpoint, set_random_seed

SHIPPED = [name for name in ALL if name.startswith('fpt/')
           and ('-detr' in name or 'dino' in name)]
WITH_ENCODER = [name for name in SHIPPED if 'fpt-encoder' not in name]


def test_there_are_configs():
    assert len(SHIPPED) == 6 and len(WITH_ENCODER) == 5


@pytest.mark.parametrize('name', WITH_ENCODER)
def test_identical_at_step_0(name, tmp_path):
    """Maps, losses and predictions, from the plain detector's checkpoint."""
    plain, ours = make(host_of(name)), make(name)
    path = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict=plain.state_dict(), meta={}), path)
    load_checkpoint(ours, path, map_location='cpu')
    found = []
    for model in (plain, ours):
        set_random_seed(1)
        losses = model.train()(**batch(model), mode='loss')
        data = batch(model.eval(), False)
        with torch.no_grad():
            maps = model.extract_feat(data['inputs'])
            samples = model(**data, mode='predict')
        boxes = [x for s in samples for x in (s.pred_instances.bboxes,
                                              s.pred_instances.scores)]
        found.append([*maps, *losses.values(), *boxes])
    assert len(found[0]) == len(found[1]) > 5
    for a, b in zip(*found):
        assert torch.equal(a, b) and a.isfinite().all()
    assert maps[0].std() > 0

    # the comparison can fail
    with torch.no_grad():
        ours.neck.fusions[0].out_conv.weight.add_(1e-3)
        changed = ours(**batch(ours, False), mode='predict')
    assert not torch.equal(changed[0].pred_instances.scores, found[1][-3])


@pytest.mark.parametrize('name', SHIPPED)
def test_trains(name):
    """Two steps: in the first one the fusions, which are zero, block FPT's branches."""
    model = make(name).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        total, _ = model.parse_losses(model(**batch(model), mode='loss'))
        total.backward()
        assert total.isfinite()
        assert [key for key, p in model.named_parameters()
                if p.requires_grad and p.grad is None] == []
        optimizer.step()
    assert [key for key, p in model.neck.named_parameters()
            if not p.grad.any()] == []
