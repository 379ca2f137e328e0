"""A benchmark case of a known size, for other processes to import."""

from dataclasses import dataclass

import torch

from fpt_plugin.commands.benchmark.measuring import Case


@dataclass(frozen=True)
class Holding(Case):
    """Allocate a known number of bytes; the second candidate twice as many."""

    size: int = 1 << 26

    def candidates(self):
        return ('once', 'twice')

    def prepare(self, candidate):
        return torch.ones(1, requires_grad=True)

    def leaves(self, state):
        return [state]

    def run(self, candidate, state):
        return state * torch.ones(self.least_bytes(candidate) // 4).sum()

    def least_bytes(self, candidate):
        return self.size * (2 if candidate == 'twice' else 1)

    def errors(self, states):
        return dict.fromkeys(states, 0.5)
