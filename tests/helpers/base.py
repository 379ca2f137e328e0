"""Tests that every neck and backbone must pass; a test file has small subclasses."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from helpers.oracles import relative_error


def sizes_of(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Return the map sizes of a backbone: each level halves and rounds up."""
    sizes = [(height, width)]
    for _ in range(levels - 1):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def backbone_maps(channels, height=25, width=42, batch=2, **kwargs):
    """Draw one map (batch, channels[i], H_i, W_i) for each level, fine to coarse."""
    return [torch.randn(batch, c, *size, **kwargs) for c, size in zip(
        channels, sizes_of(height, width, len(channels)))]


class Unpacked(nn.Module):
    """Take the maps of a neck as separate arguments, as tracers need them."""

    def __init__(self, neck):
        super().__init__()
        self.neck = neck

    def forward(self, *maps):
        return self.neck(maps)


class _BaseTester:
    """Tests of a module that is built by a config and returns several maps.

    Attributes:
        cfg: Config of the module.
        training: Settings for training.
        learning_rate: Of the step after which every gradient must be nonzero.
    """

    cfg: dict
    training: dict = {}
    learning_rate: float

    def build(self, **kwargs) -> nn.Module:
        return MODELS.build(copy.deepcopy({**self.cfg, **kwargs}))

    @staticmethod
    def loss(outs):
        return sum(x.float().square().mean() for x in outs)

    def autocast_inputs(self):
        return self.inputs()

    def test_every_parameter_learns(self):
        """DDP without find_unused_parameters needs gradients in the first step."""
        module = self.build(**self.training)
        module.init_weights()
        module.train()
        inputs = self.inputs()
        optimizer = torch.optim.SGD(module.parameters(), lr=self.learning_rate)
        self.loss(module(inputs)).backward()
        assert not [n for n, p in module.named_parameters() if p.grad is None]
        optimizer.step()
        optimizer.zero_grad()
        self.loss(module(inputs)).backward()
        assert not [n for n, p in module.named_parameters()
                    if p.grad is None or not p.grad.any()]

    def test_save_and_load(self, tmp_path):
        module, other = self.build().eval(), self.build().eval()
        torch.save(module.state_dict(), tmp_path / 'module.pth')
        other.load_state_dict(torch.load(tmp_path / 'module.pth'))
        inputs = self.inputs()
        assert all(map(torch.equal, module(inputs), other(inputs)))

    def test_autocast(self):
        module = self.build(**self.training).train()
        inputs = self.autocast_inputs()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs = module(inputs)
        self.loss(outs).backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())
        assert max(map(relative_error, outs, module(inputs))) < 0.1

    def test_images_of_a_batch_do_not_mix(self):
        module = self.build().eval()
        inputs = self.inputs()
        whole = module(inputs)
        for i in range(2):
            single = inputs[i:i + 1] if torch.is_tensor(inputs) else [
                x[i:i + 1] for x in inputs]
            for a, b in zip(whole, module(single)):
                torch.testing.assert_close(a[i:i + 1], b, rtol=1e-4, atol=1e-4)


class BaseNeckTester(_BaseTester):
    """Tests of a neck.

    Attributes:
        channels: Channels of the maps from the backbone.
        num_outs: Number of returned maps.
        out_channels: Channels of each of them.
    """

    channels: tuple[int, ...] = (8, 16, 24, 32)
    num_outs: int = 4
    out_channels: int = 16
    learning_rate = 0.1

    def inputs(self, *args, **kwargs):
        return backbone_maps(self.channels, *args, **kwargs)

    @pytest.mark.parametrize('size', [(25, 42), (33, 17), (9, 1), (1, 1), (64, 64)])
    @pytest.mark.parametrize('batch', [1, 2])
    def test_any_size_trains(self, size, batch):
        neck = self.build().train()
        inputs = self.inputs(*size, batch=batch, requires_grad=True)
        outs = neck(inputs)
        assert isinstance(outs, tuple) and len(outs) == self.num_outs
        # A pyramid may use fewer maps than it gets.
        used = inputs[-getattr(neck, 'num_levels', len(self.channels)):]
        for x, out in zip(used, outs):
            assert out.shape == (batch, self.out_channels, *x.shape[2:])
            assert out.isfinite().all()
        self.loss(outs).backward()
        assert all(x.grad.isfinite().all() for x in used)


class BaseWrapperTester(BaseNeckTester):
    """Tests of a neck that starts as the ``neck.pyramid`` inside it."""

    def test_identity_before_training(self):
        neck = self.build().eval()
        inputs = self.inputs()
        for _ in range(2):
            assert all(map(torch.equal, neck(inputs), neck.pyramid(inputs)))
            neck.init_weights()


class BaseBackboneTester(_BaseTester):
    """Tests of a backbone with the interface of mmdet's and mmseg's ResNet.

    Attributes:
        channels: Channels of its maps.
        size: Height and width of the image in most tests.
    """

    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    size: tuple[int, int] = (65, 97)
    training = dict(norm_eval=False)
    learning_rate = 0.01

    def inputs(self, *size, batch=2):
        return torch.randn(batch, 3, *(size or self.size))

    def autocast_inputs(self):
        return self.inputs(96, 96, batch=4)

    @pytest.mark.parametrize('size', [(64, 64), (65, 97), (33, 1), (1, 1)])
    def test_any_size_trains(self, size):
        backbone = self.build(norm_eval=True).train()
        image = self.inputs(*size, batch=1).requires_grad_()
        outs = backbone(image)
        assert isinstance(outs, tuple) and len(outs) == len(self.channels)
        for i, (out, channels) in enumerate(zip(outs, self.channels)):
            height, width = (-(-side // 2**(i + 2)) for side in size)
            assert out.shape == (1, channels, height, width)
            assert out.isfinite().all()
        self.loss(outs).backward()
        assert image.grad.isfinite().all()

    @pytest.mark.parametrize('frozen', range(-1, 5))
    def test_frozen_stages(self, frozen):
        """Stages are frozen before train(): DDP and optimizers come earlier."""
        backbone = self.build(frozen_stages=frozen, norm_eval=False)
        stages = [nn.ModuleList(m for name, m in backbone.named_children()
                                if not name.startswith('layer'))]
        stages += [getattr(backbone, f'layer{i}') for i in range(1, 5)]
        for _ in range(2):
            for i, stage in enumerate(stages):
                learns = i > frozen
                assert all(p.requires_grad == learns for p in stage.parameters())
                assert all(m.training == learns for m in stage.modules()
                           if isinstance(m, nn.BatchNorm2d))
            assert backbone.train() is backbone

    def test_norm_eval(self):
        backbone = self.build(norm_eval=True).train()
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and not any(m.training for m in norms)
        backbone = self.build(norm_eval=False).train()
        assert all(m.training for m in backbone.modules())
        assert not any(m.training for m in backbone.eval().modules())

    def test_checkpointing_changes_nothing(self):
        results = []
        for with_cp in (False, True):
            torch.manual_seed(0)
            backbone = self.build(with_cp=with_cp, norm_eval=True).train()
            outs = backbone(self.inputs())
            self.loss(outs).backward()
            results.append([*outs, *(p.grad for p in backbone.parameters())])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)
