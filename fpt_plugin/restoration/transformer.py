"""The encoder-decoder transformer of IPT."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention with projections without biases.

    Args:
        embed_dims: Width of the tokens.
        num_heads: A divisor of ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(embed_dims, embed_dims, bias=False) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with queries (B, n, C) to keys and values (B, m, C): (B, n, C)."""
        query, key, value = (  # (B, heads, n or m, C / heads)
            project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for project, x in ((self.query, query), (self.key, key),
                               (self.value, value)))
        x = F.scaled_dot_product_attention(query, key, value)
        return self.out(x.transpose(1, 2).flatten(2))  # (B, n, C)


class _Layer(nn.Module):
    """Common parts of the encoder's and the decoder's layers."""

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        width = int(mlp_ratio * embed_dims)
        self.attention = Attention(embed_dims, num_heads)
        self.norm = nn.LayerNorm(embed_dims)
        self.mlp = nn.Sequential(
            nn.LayerNorm(embed_dims), nn.Linear(embed_dims, width), nn.ReLU(),
            nn.Linear(width, embed_dims))


class EncoderLayer(_Layer):
    """Self-attention and an MLP, each after a norm (IPT, Eq. 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        y = self.norm(x)
        x = x + self.attention(y, y, y)
        return x + self.mlp(x)


class DecoderLayer(_Layer):
    """Self-attention, cross-attention to the encoder, and an MLP (IPT, Eq. 3).

    The task's embedding is added to the queries of both attentions and to the keys
    of the self-attention.
    """

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__(embed_dims, num_heads, mlp_ratio)
        self.cross_attention = Attention(embed_dims, num_heads)
        self.cross_norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor, memory: Tensor, task: Tensor) -> Tensor:
        """Decode tokens.

        Args:
            x: (B, N, C).
            memory: Normalised output of the encoder (B, N, C).
            task: Embedding of the task (N, C).

        Returns:
            (B, N, C).
        """
        y = self.norm(x)
        x = x + self.attention(y + task, y + task, y)
        x = x + self.cross_attention(self.cross_norm(x) + task, memory, memory)
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Encoder and decoder (IPT, Sec. 3.1).

    Args:
        embed_dims: Width of the tokens.
        depth: Number of layers of the encoder, and of the decoder.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the MLPs divided by ``embed_dims``.
    """

    def __init__(self, embed_dims: int, depth: int, num_heads: int,
                 mlp_ratio: float) -> None:
        super().__init__()
        size = embed_dims, num_heads, mlp_ratio
        self.encoder = nn.Sequential(*(EncoderLayer(*size) for _ in range(depth)))
        self.decoder = nn.ModuleList(DecoderLayer(*size) for _ in range(depth))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """Map tokens with positions (B, N, C) and a task (N, C) to (B, N, C)."""
        x = self.encoder(x)
        memory = F.layer_norm(x, x.shape[-1:])  # LN(z_0)
        for layer in self.decoder:
            x = layer(x, memory, task)
        return x
