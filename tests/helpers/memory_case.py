"""A benchmark case of a known size, importable by other processes."""

from dataclasses import dataclass

import torch

from fpt_plugin.commands.benchmark.measuring import Case


@dataclass(frozen=True)
class Holding(Case):
    """Holds a known number of bytes; the other contestant twice as many."""

    size: int = 1 << 26

    def contestants(self):
        return ('once', 'twice')

    def prepare(self, contestant):
        return torch.ones(1, requires_grad=True)

    def leaves(self, state):
        return [state]

    def run(self, contestant, state):
        count = self.size // 4 * (2 if contestant == 'twice' else 1)
        return state * torch.ones(count).sum()

    def least_bytes(self, contestant):
        return self.size * (2 if contestant == 'twice' else 1)

    def errors(self, states):
        return dict.fromkeys(states, 0.5)
