"""How many numbers the functions hold at once, device by device.

Everything that grows with the product of queries and keys (scores, banded
matrices, lambdas, transforms) is made in pieces of at most this many numbers.
"""

from __future__ import annotations

import torch

# Most numbers of one kind that are ever held at once. On an H200, 16 images of
# lambdas took 16.2 ms with 2^25, 9.7 with 2^26 and 9.9 with 2^27.
SCORE_BUDGET = {'cpu': 1 << 23, 'cuda': 1 << 26}
# How many stay in a CPU's caches between the operations that touch them: 4 MiB
# of float32. More are only taken for chunks of up to ROWS queries, because
# products of fewer rows are slow.
CACHED_SCORES = {'cpu': 1 << 20}
ROWS = 256


def score_budget(device: torch.device) -> int:
    """Scores that may be held at once; other accelerators count as CUDA."""
    return SCORE_BUDGET.get(device.type, SCORE_BUDGET['cuda'])


def cached_scores(device: torch.device) -> int:
    """Scores that are best held at once."""
    budget = score_budget(device)
    return min(budget, CACHED_SCORES.get(device.type, budget))


def chunk_length(device: torch.device, queries: int, scores: int) -> int:
    """Queries whose scores are made at once, about as many in each chunk.

    Args:
        device: Of the tensors.
        queries: All of them, Lq.
        scores: Scores of one query in all images, B * Lk.
    """
    scores = max(1, scores)
    fitting = score_budget(device) // scores
    cached = cached_scores(device) // scores
    longest = max(1, min(queries, fitting, max(ROWS, cached)))
    chunks = max(1, -(-queries // longest))
    return max(1, -(-queries // chunks))
