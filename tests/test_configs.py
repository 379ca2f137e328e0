"""Every shipped config parses and builds; representatives train a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from fpt_plugin import FPT, BottomUpPyramid

CONFIGS = Path(__file__).parents[1] / 'configs'
ALL = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('*/*.py')
    if path.parent.name != '_base_')
REPRESENTATIVES = (
    'fpt/faster-rcnn_r50_fpt_1x_coco.py',
    'fpt/retinanet_r50_fpt_1x_coco.py',
    'fpt/mask-rcnn_r50_fpt-paper_1x_coco.py',
    'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py',
)


def load(name: str) -> Config:
    """The config without weights that would be downloaded."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.init_cfg = None
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', ALL)
def test_parses_and_builds(name):
    cfg = load(name)
    assert 'fpt_plugin' in cfg.custom_imports.imports
    neck = build(cfg).neck
    assert isinstance(neck, (FPT, BottomUpPyramid))
    if name.startswith('fpt/'):
        assert cfg.auto_scale_lr.base_batch_size == 16


def train_step(name: str) -> None:
    from mmdet.testing import demo_mm_inputs
    cfg = load(name)
    classes = 80
    if name.startswith('quickstart'):
        # mmdet's random labels begin at 1, which one class does not have
        classes = cfg.model.roi_head.bbox_head.num_classes = 2
    model = build(cfg).train()
    model.init_weights()
    data = model.data_preprocessor(
        demo_mm_inputs(
            2, [[3, 96, 128]] * 2,
            num_classes=classes,
            with_mask=getattr(model, 'with_mask', False)), True)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None for p in model.neck.parameters()
               if p.requires_grad)


@pytest.mark.parametrize('name', REPRESENTATIVES)
def test_trains_a_step(name):
    train_step(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    name for name in ALL if name not in REPRESENTATIVES
    # SyncBN needs CUDA, and so does AMP.
    and 'syncbn' not in name and '_amp-' not in name
])
def test_all_train_a_step(name):
    train_step(name)


def test_the_ablation_adds_up():
    """Each row has the pyramid and its own branches, and one fusion."""
    rows = {
        row: build(load(f'fpt/mask-rcnn_r50_{row}_1x_coco.py')).neck
        for row in ('bup-st', 'bup-gt', 'bup-rt', 'bup-st-gt', 'bup-st-rt',
                    'bup-gt-rt', 'fpt-paper')
    }
    kinds = dict(
        st='self_transformers',
        gt='grounding_transformers',
        rt='rendering_transformers')
    for row, neck in rows.items():
        wanted = set(kinds) if row == 'fpt-paper' else set(row.split('-')[1:])
        present = {k for k, name in kinds.items() if len(getattr(neck, name))}
        assert present == wanted
        assert type(neck.pyramid) is BottomUpPyramid
        assert neck.key_strides == (1, 1, 1, 1)


def test_fine_tuning_moves_new_layers_faster():
    cfg = load('fpt/faster-rcnn_r50_fpt_finetune-4e_coco.py')
    model = build(cfg)
    from mmengine.optim import build_optim_wrapper
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for p in group['params']:
            rates[names[id(p)]] = group['lr']
    for name, rate in rates.items():
        new = name.startswith('neck.') and not name.startswith('neck.pyramid.')
        assert rate == pytest.approx(0.02 if new else 0.002), name


def test_frozen_fine_tuning():
    neck = build(load('fpt/faster-rcnn_r50_fpt-frozen_finetune-4e_coco.py')).neck
    assert not any(p.requires_grad for p in neck.pyramid.parameters())


def costs_of_readme() -> dict[str, tuple[str, ...]]:
    """Parameters, GMACs and those of FPT by config; braces are spelt out."""
    found = {}
    for line in (CONFIGS / 'fpt' / 'README.md').read_text().splitlines():
        match = re.match(r'\| `([\w{},-]+)` \|', line)
        if match:
            numbers = re.search(r'\| (\d+\.\d) \| (\d+) \| (\d+) \|', line)
            head, *options = re.split(r'\{(.*)\}', match[1])
            for option in options[0].split(',') if options else ['']:
                name = head + option + (options[1] if options else '')
                found[name] = numbers.groups()
    return found


def test_readme_names_every_config():
    assert set(costs_of_readme()) == {
        Path(name).stem for name in ALL if name.startswith('fpt/')
    }


@pytest.mark.slow
@pytest.mark.parametrize('name, costs', costs_of_readme().items())
def test_costs_of_the_readme(name, costs):
    from fpt_plugin.utils.complexity import complexity
    counted = complexity(str(CONFIGS / 'fpt' / f'{name}.py'), (800, 1344))
    assert counted.complete
    fpt = [part.macs for part in counted.parts if part.name == 'fpt']
    assert costs == (f'{counted.total.parameters / 1e6:.1f}',
                     f'{counted.total.macs / 1e9:.0f}',
                     f'{sum(fpt) / 1e9:.0f}')
