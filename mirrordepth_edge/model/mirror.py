"""The mirror: a learnable matrix that replaces token embeddings as input of the text tower.

Source: "CLIP Can Understand Depth", arXiv 2402.03251, with 64 x 512 entries. The initial standard deviation is not
published; 0.02 is that of CLIP's token embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02


class Mirror(nn.Module):
    """Learnable embeddings `[length, width]`.

    Args:
        length: number of rows, at most the context length of the text tower.
        width: embedding width of the text tower.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(length, width) * INITIAL_STD)

    def forward(self) -> Tensor:
        return self.embeddings
