"""A multilayer perceptron: the 784-500-10 network that every tutorial starts with.

Rumelhart, Hinton and Williams 1986; with dropout as Srivastava et al. 2014 place it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import final

from torch import Tensor, nn


@final
class MLP(nn.Module):
    """Flat pixels, fully connected layers with ReLU and dropout, a linear head."""

    head_name = "head"

    def __init__(
        self,
        *,
        num_classes: int = 10,
        channels: int = 1,
        image_px: int = 28,
        hidden: Sequence[int] = (500,),
        dropout: float = 0.5,
    ) -> None:
        """hidden: width of each hidden layer, from the pixels on."""
        super().__init__()
        widths = (channels * image_px * image_px, *hidden)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(inplace=True))
                for inputs, outputs in itertools.pairwise(widths)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> features (N, hidden[-1])."""
        x = images.flatten(1)
        for index, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if index else x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), normalised -> logits (N, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.embed(images)))
        return logits

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        hidden = tuple((f"hidden{index}", layer) for index, layer in enumerate(self.layers))
        return (*hidden, ("head", self.head))
