"""How many numbers the functions hold at once, by device.

Everything that grows with the product of queries and keys (scores, banded
matrices, lambdas) is computed in pieces of at most this many numbers.
"""

from __future__ import annotations

import torch

# Most numbers of one kind that are held at once. On an H200, 16 images of lambdas
# took 16.2 ms with 2^25, 9.7 with 2^26 and 9.9 with 2^27.
SCORE_BUDGET = {'cpu': 1 << 23, 'cuda': 1 << 26}
# Numbers that stay in a CPU's caches between the operations that read them: 4 MiB
# of float32. Chunks of up to EFFICIENT_ROWS queries may hold more, because products
# of fewer rows are slow.
CACHED_SCORES = {'cpu': 1 << 20}
EFFICIENT_ROWS = 256


def score_budget(device: torch.device) -> int:
    """Return how many scores may be held at once; other accelerators are as CUDA."""
    return SCORE_BUDGET.get(device.type, SCORE_BUDGET['cuda'])


def cached_scores(device: torch.device) -> int:
    """Return how many scores should be held at once for the best speed."""
    budget = score_budget(device)
    return min(budget, CACHED_SCORES.get(device.type, budget))


def chunk_length(device: torch.device, queries: int, scores: int) -> int:
    """Choose how many queries a chunk has, about the same number in each.

    Args:
        device: The tensors' device.
        queries: Number of all queries, Lq.
        scores: Scores of one query in all images, B * Lk.
    """
    scores = max(1, scores)
    fitting = score_budget(device) // scores
    cached = cached_scores(device) // scores
    longest = max(1, min(queries, fitting, max(EFFICIENT_ROWS, cached)))
    chunks = max(1, -(-queries // longest))
    return max(1, -(-queries // chunks))
