"""The mirror: a learned matrix that takes the place of word embeddings.

Source: "CLIP Can Understand Depth", arXiv 2402.03251; 64 x 512 there. The initial standard
deviation is not published; 0.02 is that of CLIP's own token embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02


class Mirror(nn.Module):
    """One learnable matrix, shape `[length, width]`, in embedding units of the text tower."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(length, width) * INITIAL_STD)

    def forward(self) -> Tensor:
        return self.embeddings
