"""PixelGPT's transformer: that of GPT-2, causal or not, over the pixels of an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional.checks import no_autocast

EMBEDDING_STD = 0.02  # of embeddings of colours at the start


class LayerCache:
    """Keep the keys and values of the earlier tokens of a layer.

    Args:
        length: The most tokens.
    """

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of n more tokens (B, heads, n, d); return all so far."""
        if self.keys is None:
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        start, self.filled = self.filled, self.filled + keys.shape[2]
        self.keys[:, :, start:self.filled] = keys
        self.values[:, :, start:self.filled] = values
        return self.keys[:, :, :self.filled], self.values[:, :, :self.filled]


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        embed_dims: Width of the tokens.
        num_heads: A divisor of ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.out = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, causal: bool,
                cache: LayerCache | None = None) -> Tensor:
        """Attend: (B, N, C) to (B, N, C), to the tokens of a cache, too."""
        # (B, N, 3C) to three of (B, heads, N, C / heads)
        query, key, value = self.qkv(x).unflatten(
            2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.append(key, value)
        # A single token attends to all earlier ones and to itself.
        x = F.scaled_dot_product_attention(
            query, key, value, is_causal=causal and query.shape[2] > 1)
        return self.out(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, a norm before each (iGPT, Sec. 2.3).

    Args:
        embed_dims: Width of the tokens.
        num_heads: A divisor of ``embed_dims``.
        mlp_ratio: Width of the MLP over ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        width = int(mlp_ratio * embed_dims)
        self.attention_norm = nn.LayerNorm(embed_dims)
        self.attention = Attention(embed_dims, num_heads)
        self.mlp_norm = nn.LayerNorm(embed_dims)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dims, width), nn.GELU('tanh'),
            nn.Linear(width, embed_dims))

    def forward(self, x: Tensor, causal: bool,
                cache: LayerCache | None = None) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.attention(self.attention_norm(x), causal, cache)
        return x + self.mlp(self.mlp_norm(x))


class ColourFeatures(nn.Module):
    """Describe colours by sines, so that similar colours have similar features.

    The sines of random directions in the colour space, with fixed frequencies.

    Args:
        channels: Number of features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        waves = (channels + 1) // 2
        directions = torch.randn(
            3, waves, generator=torch.Generator().manual_seed(0), device='cpu')
        # Periods of about 500, 250, 120 and 60 grey levels, in turn.
        scales = 2.**(torch.arange(waves, device='cpu') % 4 - 1) / 64
        self.channels = channels
        self.register_buffer('directions', directions * scales)  # (3, waves)

    def forward(self, colours: Tensor) -> Tensor:
        """Map n colours (n, 3) in 0..255 to (n, channels), of mean 0."""
        # Lower precision would change them between training and inference.
        with no_autocast(colours.device):
            phases = (colours - 127.5) @ self.directions  # (n, waves)
            waves = torch.cat([phases.sin(), phases.cos()], dim=1)[:, :self.channels]
            waves = waves - waves.mean(0)
            return waves * (EMBEDDING_STD / waves.std().clamp(min=1e-6))


class PixelTransformer(nn.Module):
    """Embeddings, blocks, and the layer that predicts colours.

    With ``colour_features`` the embedding of a colour is that of the paper plus its
    :class:`ColourFeatures`, and the weights that predict it have a learned linear
    map of them added. What is learned of a colour then holds for similar ones.

    Args:
        pixels: Of an image, row by row.
        colours: Number of tokens.
        depth: Number of blocks.
        embed_dims: Width, a multiple of ``num_heads``.
        num_heads: Of each block.
        mlp_ratio: Width of the MLPs over ``embed_dims``.
        colour_features: See above.
    """

    def __init__(self, pixels: int, colours: int, depth: int, embed_dims: int,
                 num_heads: int, mlp_ratio: float = 4.,
                 colour_features: bool = False) -> None:
        super().__init__()
        self.colours = nn.Embedding(colours, embed_dims)
        self.positions = nn.Parameter(torch.empty(pixels, embed_dims))
        # Stands before the first pixel, or in the place of hidden ones.
        self.special = nn.Parameter(torch.empty(embed_dims))
        self.blocks = nn.ModuleList(
            Block(embed_dims, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dims)
        self.predict = nn.Linear(embed_dims, colours, bias=False)
        self.colour_features, self.map_features = None, None
        if colour_features:
            self.colour_features = ColourFeatures(embed_dims)
            self.map_features = nn.Linear(embed_dims, embed_dims, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the paper's code does: no colour is preferred at the start.

        Layers that write into the residual path are smaller in deep networks.
        """
        width, depth = self.positions.shape[1], len(self.blocks)
        nn.init.normal_(self.colours.weight, std=EMBEDDING_STD)
        if self.map_features is not None:
            nn.init.zeros_(self.colours.weight)  # the features are enough
            nn.init.zeros_(self.map_features.weight)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.special, std=0.02)
        nn.init.zeros_(self.predict.weight)
        for block in self.blocks:
            for layer, std in ((block.attention.qkv, width**-0.5),
                               (block.attention.out, (width * depth)**-0.5),
                               (block.mlp[0], 0.02), (block.mlp[2], 0.02)):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Refuse a model with other ``colour_features``, which mmengine would log."""
        given = f'{prefix}map_features.weight' in state_dict
        own = self.map_features is not None
        if f'{prefix}colours.weight' in state_dict and given != own:
            raise ValueError(f'the checkpoint has colour_features={given}, the model '
                             f'has colour_features={own}')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def tables(self, palette: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of colours and the weights that predict them.

        Args:
            palette: (colours, 3) in 0..255; used by ``colour_features`` only.

        Returns:
            (colours, C) both.
        """
        if self.colour_features is None:
            return self.colours.weight, self.predict.weight
        features = self.colour_features(palette)  # (colours, C)
        return (self.colours.weight + features,
                self.predict.weight + self.map_features(features))

    def embed(self, tokens: Tensor, colours: Tensor, first: int = 0) -> Tensor:
        """Embed pixels ``first`` and following: (B, n) to (B, n, C).

        Args:
            tokens: (B, n).
            colours: (colours, C), see :meth:`tables`.
            first: Number of the first pixel.
        """
        positions = self.positions[first:first + tokens.shape[1]]
        return F.embedding(tokens, colours) + positions

    def start(self, batch: int) -> Tensor:
        """Return the token before the first pixel: (B, 1, C)."""
        return self.special.expand(batch, 1, -1)

    def forward(self, x: Tensor, causal: bool,
                caches: list[LayerCache] | None = None) -> Tensor:
        """Turn embedded tokens (B, N, C) into normalised states (B, N, C)."""
        for i, block in enumerate(self.blocks):
            x = block(x, causal, None if caches is None else caches[i])
        return self.norm(x)

    def layers(self, x: Tensor, causal: bool) -> Iterator[Tensor]:
        """Yield the features of each layer, (B, N, C): depth + 1 of them.

        These are the normalised inputs of the attention of each block, and the
        states that :meth:`forward` returns (iGPT, Sec. 2.4).
        """
        for block in self.blocks:
            yield block.attention_norm(x)
            x = block(x, causal)
        yield self.norm(x)
