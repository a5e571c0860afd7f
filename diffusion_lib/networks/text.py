"""Networks that read: a text encoder, and CLIP, which compares captions to pictures."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import stage

PAD, START = 0, 1  # the tokens that are no words: filling, and the first of a caption


class TextEncoder(nn.Module):
    """encoder(tokens (B, L)) -> one vector per token, (B, L, width).

    A small transformer (Vaswani et al. 2017) in which every word sees all others of its
    caption, and none the filling. words: number of tokens there are; length: the most
    tokens a caption can have. Raises ValueError unless heads divides width; for tokens
    out of range, too many, or without START at the front (see `tokenise`).
    """

    def __init__(
        self,
        words: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        length: int = 24,
    ):
        super().__init__()
        if words < 3 or width % heads:
            raise ValueError(f"words is 3 or more, and {heads} heads divide {width}")
        self.words, self.width, self.length = words, width, length
        self.word = nn.Embedding(words, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, L, width); what stands at the filling means nothing."""
        self.check(tokens)
        h = self.word(tokens) + self.place[: tokens.shape[1]]
        mask = (tokens != PAD)[:, None, None]  # (B, 1, 1, L): of the keys
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h)

    def check(self, tokens: Tensor) -> None:
        """Raise ValueError for tokens that this encoder cannot read."""
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(
                f"text must be int64 tokens (B, L), as tokenise gives, got "
                f"{tokens.dtype} {tuple(tokens.shape)}"
            )
        if not 1 <= tokens.shape[1] <= self.length:
            raise ValueError(
                f"captions have 1 to {self.length} tokens, got {tokens.shape[1]}"
            )
        if not bool(((tokens >= 0) & (tokens < self.words)).all()):
            raise ValueError(f"tokens must be 0 to {self.words - 1}")
        if not bool((tokens[:, 0] == START).all()):
            raise ValueError("every caption begins with the start token: use tokenise")


class TextBlock(nn.Module):
    """h (B, L, width) -> like h: attention to the caption's words, then a perceptron.

    mask (B, 1, 1, L): true where there is a word. Norms come first.
    """

    def __init__(self, width: int, heads: int, expand: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expand * width),
            nn.GELU(),
            nn.Linear(expand * width, width),
        )

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Return (B, L, width)."""
        qkv = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h))


def no_words(tokens: Tensor) -> Tensor:
    """Return the empty caption in place of each, (B, L): START, then filling."""
    empty = torch.full_like(tokens, PAD)
    empty[:, 0] = START
    return empty


class CLIP(nn.Module):
    """clip(x (B, C, H, W), tokens (B, L)) -> logits (B, B): does caption j fit x_i?

    Pictures and captions become unit vectors of one space; the logits are their cosines
    times a scale that is learned, 1 / 0.07 at first and at most 100 (Radford et al.
    2021, section 2.3 to 2.5). words: see TextEncoder; size: (H, W) of the pictures.
    Raises ValueError for pictures of another size, or sides that 4 does not divide.
    """

    def __init__(
        self,
        words: int,
        dim: int = 64,
        width: int = 32,
        size: tuple[int, int] = (28, 56),
        channels: int = 1,
    ):
        super().__init__()
        if any(side % 4 or side < 4 for side in size):
            raise ValueError(f"the sides {tuple(size)} must be multiples of 4")
        self.shape = (channels, *size)
        self.picture = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.SiLU(),
            *stage(16, width),
            *stage(width, 2 * width),
            nn.Flatten(),
            nn.Linear(2 * width * (size[0] // 4) * (size[1] // 4), dim),
        )
        self.text = TextEncoder(words)
        self.caption = nn.Linear(self.text.width, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def see(self, x: Tensor) -> Tensor:
        """Return the unit vectors of pictures, (B, dim)."""
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ValueError(f"expected pictures (B, *{self.shape}), got {x.shape}")
        return F.normalize(self.picture(x).float(), dim=1)

    def read(self, tokens: Tensor) -> Tensor:
        """Return the unit vectors of captions, (B, dim), from their start tokens."""
        return F.normalize(self.caption(self.text(tokens)[:, 0]).float(), dim=1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits, (pictures, captions)."""
        pictures, captions = self.see(x), self.read(tokens)
        with torch.autocast(x.device.type, enabled=False):  # half precision is too few
            return self.log_scale.exp().clamp(max=100) * pictures @ captions.T
