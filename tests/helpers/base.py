"""What necks and backbones must pass; a test file is a small subclass."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.registry import MODELS


def sizes_of(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Map sizes of a backbone: each level halves, rounding up."""
    sizes = [(height, width)]
    for _ in range(levels - 1):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def backbone_maps(channels, height=25, width=42, batch=2, **kwargs):
    """One map (batch, channels[i], H_i, W_i) a level, fine to coarse."""
    sizes = sizes_of(height, width, len(channels))
    return [
        torch.randn(batch, c, *size, **kwargs)
        for c, size in zip(channels, sizes)
    ]


class BaseNeckTester:
    """Behaviour that a config promises, at small sizes.

    Attributes:
        cfg: Config of the neck.
        channels: Channels of the backbone maps it takes.
        num_outs: Maps it returns.
        out_channels: Channels of each.
    """

    cfg: dict
    channels: tuple[int, ...] = (8, 16, 24, 32)
    num_outs: int = 4
    out_channels: int = 16

    def build(self, **kwargs) -> torch.nn.Module:
        return MODELS.build(copy.deepcopy({**self.cfg, **kwargs}))

    def inputs(self, *args, **kwargs):
        return backbone_maps(self.channels, *args, **kwargs)

    @staticmethod
    def loss(outs):
        return sum(x.float().square().mean() for x in outs)

    @pytest.mark.parametrize('size', [(25, 42), (33, 17), (9, 1), (1, 1),
                                      (64, 64)])
    @pytest.mark.parametrize('batch', [1, 2])
    def test_any_size_trains(self, size, batch):
        neck = self.build().train()
        inputs = self.inputs(*size, batch=batch, requires_grad=True)
        outs = neck(inputs)
        assert isinstance(outs, tuple) and len(outs) == self.num_outs
        # A pyramid may take in fewer maps than it is given.
        offset = len(self.channels) - getattr(neck, 'num_levels',
                                              len(self.channels))
        for x, out in zip(inputs[offset:], outs):
            assert out.shape == (batch, self.out_channels, *x.shape[2:])
            assert out.isfinite().all()
        self.loss(outs).backward()
        assert all(x.grad.isfinite().all() for x in inputs[offset:])

    def test_every_parameter_learns(self):
        """DDP without find_unused_parameters needs gradients at step 0."""
        neck = self.build().train()
        neck.init_weights()
        inputs = self.inputs()
        optimizer = torch.optim.SGD(neck.parameters(), lr=0.1)
        self.loss(neck(inputs)).backward()
        missing = [n for n, p in neck.named_parameters() if p.grad is None]
        assert not missing
        optimizer.step()
        optimizer.zero_grad()
        self.loss(neck(inputs)).backward()
        still = [
            n for n, p in neck.named_parameters()
            if p.grad is None or not p.grad.any()
        ]
        assert not still

    def test_save_and_load(self, tmp_path):
        neck, other = self.build().eval(), self.build().eval()
        torch.save(neck.state_dict(), tmp_path / 'neck.pth')
        other.load_state_dict(torch.load(tmp_path / 'neck.pth'))
        inputs = self.inputs()
        for a, b in zip(neck(inputs), other(inputs)):
            assert torch.equal(a, b)

    def test_autocast(self):
        neck = self.build().train()
        inputs = self.inputs()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs = neck(inputs)
        self.loss(outs).backward()
        for out, reference in zip(outs, neck(inputs)):
            torch.testing.assert_close(
                out.float(), reference, rtol=0.1, atol=0.1)
        assert all(p.grad.isfinite().all() for p in neck.parameters())

    def test_images_of_a_batch_do_not_mix(self):
        neck = self.build().eval()
        inputs = self.inputs()
        for i in range(2):
            alone = neck([x[i:i + 1] for x in inputs])
            for a, b in zip(neck(inputs), alone):
                torch.testing.assert_close(a[i:i + 1], b, rtol=1e-4, atol=1e-5)


class BaseWrapperTester(BaseNeckTester):
    """A neck around ``neck.pyramid`` that starts as the pyramid alone."""

    def test_identity_before_training(self):
        neck = self.build().eval()
        inputs = self.inputs()
        for _ in range(2):
            for out, plain in zip(neck(inputs), neck.pyramid(inputs)):
                assert torch.equal(out, plain)
            neck.init_weights()


class BaseBackboneTester:
    """What a host's config expects of a backbone.

    Attributes:
        cfg: Config of the backbone.
        channels: Channels of its maps.
        size: Height and width of the image that most tests take.
    """

    cfg: dict
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    size: tuple[int, int] = (65, 97)

    def build(self, **kwargs) -> torch.nn.Module:
        return MODELS.build(copy.deepcopy({**self.cfg, **kwargs}))

    def image(self, *size, batch=2):
        return torch.randn(batch, 3, *(size or self.size))

    @staticmethod
    def loss(outs):
        return sum(x.float().square().mean() for x in outs)

    @pytest.mark.parametrize('size', [(64, 64), (65, 97), (33, 1), (1, 1)])
    def test_any_size_trains(self, size):
        backbone = self.build(norm_eval=True).train()
        image = self.image(*size, batch=1).requires_grad_()
        outs = backbone(image)
        assert isinstance(outs, tuple)
        for i, (out, channels) in enumerate(zip(outs, self.channels)):
            stride = 2**(i + 2)
            assert out.shape == (1, channels,
                                 *(-(-side // stride) for side in size))
            assert out.isfinite().all()
        assert len(outs) == len(self.channels)
        self.loss(outs).backward()
        assert image.grad.isfinite().all()

    def test_every_parameter_learns(self):
        """DDP without find_unused_parameters needs gradients at step 0."""
        backbone = self.build(norm_eval=False)
        backbone.init_weights()
        backbone.train()
        image = self.image()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
        self.loss(backbone(image)).backward()
        assert not [n for n, p in backbone.named_parameters() if p.grad is None]
        optimizer.step()
        optimizer.zero_grad()
        self.loss(backbone(image)).backward()
        still = [
            n for n, p in backbone.named_parameters()
            if p.grad is None or not p.grad.any()
        ]
        assert not still

    def test_save_and_load(self, tmp_path):
        backbone, other = self.build().eval(), self.build().eval()
        torch.save(backbone.state_dict(), tmp_path / 'backbone.pth')
        other.load_state_dict(torch.load(tmp_path / 'backbone.pth'))
        image = self.image()
        for a, b in zip(backbone(image), other(image)):
            assert torch.equal(a, b)

    @pytest.mark.parametrize('frozen', range(-1, 5))
    def test_frozen_stages(self, frozen):
        """Frozen from the start: DDP and optimizers come before train()."""
        backbone = self.build(frozen_stages=frozen, norm_eval=False)
        modules = [[m for name, m in backbone.named_children()
                    if not name.startswith('layer')]]
        modules += [[getattr(backbone, f'layer{i}')] for i in range(1, 5)]
        for _ in range(2):
            for stage, group in enumerate(modules):
                for module in group:
                    learns = stage > frozen
                    assert all(p.requires_grad == learns
                               for p in module.parameters())
                    assert all(m.training == learns for m in module.modules()
                               if isinstance(m, torch.nn.BatchNorm2d))
            assert backbone.train() is backbone

    def test_norm_eval(self):
        backbone = self.build(norm_eval=True).train()
        norms = [m for m in backbone.modules()
                 if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and not any(m.training for m in norms)
        backbone = self.build(norm_eval=False).train()
        assert all(m.training for m in backbone.modules())
        assert not any(m.training for m in backbone.eval().modules())

    def test_checkpointing_changes_nothing(self):
        outs, grads = [], []
        for with_cp in (False, True):
            torch.manual_seed(0)
            backbone = self.build(with_cp=with_cp, norm_eval=True).train()
            image = self.image()
            outs.append(backbone(image))
            self.loss(outs[-1]).backward()
            grads.append([p.grad for p in backbone.parameters()])
        for a, b in zip((*outs[0], *grads[0]), (*outs[1], *grads[1])):
            torch.testing.assert_close(a, b)

    def test_autocast(self):
        backbone = self.build(norm_eval=False).train()
        image = self.image(96, 96, batch=4)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs = backbone(image)
        self.loss(outs).backward()
        assert all(p.grad.isfinite().all() for p in backbone.parameters())
        for out, want in zip(outs, backbone(image)):
            error = (out.float() - want).norm() / want.norm()
            assert error < 0.1

    def test_images_of_a_batch_do_not_mix(self):
        backbone = self.build().eval()
        image = self.image()
        for whole, alone in zip(backbone(image), backbone(image[1:])):
            torch.testing.assert_close(whole[1:], alone, rtol=1e-4, atol=1e-4)
