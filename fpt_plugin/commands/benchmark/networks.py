"""Cases of whole networks, without mmdet and mmseg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...backbones import LambdaResNet
from ...necks import FPT, BottomUpPyramid
from .measuring import Case

# Lambda blocks of the backbone, and the neck.
NETWORKS = {
    'ResNet-50': ((), None),
    'ResNet-50 + pyramid': ((), 'pyramid'),
    'ResNet-50 + FPT': ((), 'fpt'),
    'LambdaResNet-50': ('hybrid', None),
    'LambdaResNet-50 + FPT': ('hybrid', 'fpt'),
}
_CHANNELS = [256, 512, 1024, 2048]


class Network(nn.Module):
    """LambdaResNet-50, with or without lambda blocks, and a neck.

    The ResNet-50 has the stem and shortcuts of ResNet-D. FPT is the default
    preset over a :class:`~fpt_plugin.necks.BottomUpPyramid`, which needs neither
    mmdet nor mmseg.

    Args:
        name: A key of NETWORKS.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        blocks, neck = NETWORKS[name]
        args = dict(in_channels=_CHANNELS, out_channels=256, num_outs=5)
        self.backbone = LambdaResNet(50, lambda_blocks=blocks)
        self.neck = {
            None: nn.Identity,
            'pyramid': lambda: BottomUpPyramid(**args),
            'fpt': lambda: FPT(pyramid=dict(type='BottomUpPyramid'), **args),
        }[neck]()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of all levels from (B, 3, H, W)."""
        return self.neck(self.backbone(image))


@dataclass
class TrainingState:
    """A network, its optimiser, and a batch of images."""

    network: Network
    optimizer: torch.optim.Optimizer
    image: Tensor


@dataclass(frozen=True)
class NetworkCase(Case):
    """Inference and training steps of networks, at one image size.

    Parameters and images are float32. A lower ``dtype`` is the type of autocast.
    Memory includes weights and the optimiser's state.

    Attributes:
        shape: Height and width of the image.
        names: Keys of NETWORKS.
    """

    passes: ClassVar[tuple[str, ...]] = ('forward', 'step')
    shape: tuple[int, int] = (800, 1344)
    batch: int = 1
    names: tuple[str, ...] = tuple(NETWORKS)

    def candidates(self) -> tuple[str, ...]:
        """Return the names of the networks."""
        return self.names

    def prepare(self, candidate: str) -> TrainingState:
        """Build the network in training mode, its optimiser, and images."""
        torch.manual_seed(0)
        network = Network(candidate).to(self.device).train()
        optimizer = torch.optim.SGD(
            network.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
        generator = torch.Generator(self.device).manual_seed(0)
        image = torch.randn(
            self.batch, 3, *self.shape, generator=generator,
            device=self.device)
        return TrainingState(network, optimizer, image)

    def leaves(self, state: TrainingState) -> list[Tensor]:
        """Return the parameters; images get no gradient, as in training."""
        return list(state.network.parameters())

    def run(self, candidate: str, state: TrainingState) -> Sequence[Tensor]:
        """Compute the maps."""
        dtype = getattr(torch, self.dtype)
        with torch.autocast(
                self.device, dtype, enabled=dtype != torch.float32):
            return state.network(state.image)

    def step(self, state: TrainingState) -> None:
        """Run a step of SGD with momentum."""
        state.optimizer.step()

    def held_bytes(self, state: TrainingState) -> int:
        """Return the bytes of weights, buffers and momentum."""
        tensors = [*state.network.parameters(), *state.network.buffers()]
        tensors += [x for kept in state.optimizer.state.values()
                    for x in kept.values() if isinstance(x, Tensor)]
        return sum(x.nbytes for x in tensors)

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(shape=self.shape, batch=self.batch, dtype=self.dtype)
