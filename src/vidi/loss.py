"""What is made smaller: losses of logits and targets, as sums over images.

Sums, not means, so that a batch that is cut into micro-batches or spread over processes has the
loss and the gradient of the whole: whoever calls divides by the number of images of the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional

LossName = Literal["cross_entropy", "bce", "focal"]


@final
@dataclass(frozen=True, slots=True)
class Loss:
    """A loss that can be called: (logits, targets) -> the sum of the losses of the images.

    Args:
        name: "cross_entropy", with soft targets too (Szegedy et al. 2016); "bce", one
            yes-or-no question for each class, summed over classes (Wightman et al. 2021);
            "focal", cross-entropy times (1 - p) ** gamma (Lin et al. 2017).
        label_smoothing: share of each target that is spread evenly over the classes.
        gamma: of the focal loss; at 0 it is cross-entropy.
        class_weights: (K,), what an image of each class counts; None for all alike.
        log_prior: (K,), added to the logits while training, so that the network itself learns
            what is left once frequency is taken out (logit adjustment; Menon et al. 2021).
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    gamma: float = 2.0
    class_weights: Tensor | None = None
    log_prior: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, K) float32; targets (N,) int64 or (N, K) float, rows sum to 1 -> ()."""
        if self.log_prior is not None:
            logits = logits + self.log_prior
        if self.name == "cross_entropy" and self.class_weights is None:
            return functional.cross_entropy(
                logits, targets, label_smoothing=self.label_smoothing, reduction="sum"
            )
        return self.of_each(logits, targets).sum()

    def of_each(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image, (N,); `log_prior` is for the caller to have added."""
        soft = self._soft(targets, logits.shape[1])
        if self.name == "bce":
            each = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(
                1
            )
        else:
            log_shares = functional.log_softmax(logits, dim=1)
            if self.name == "focal":
                log_shares = log_shares * (1.0 - log_shares.exp()) ** self.gamma
            each = -(soft * log_shares).sum(1)
        if self.class_weights is None:
            return each
        weights = self.class_weights[targets] if targets.ndim == 1 else targets @ self.class_weights
        return each * weights

    def _soft(self, targets: Tensor, num_classes: int) -> Tensor:
        soft = targets if targets.ndim == 2 else functional.one_hot(targets, num_classes).float()
        if self.label_smoothing == 0.0:
            return soft
        return soft * (1.0 - self.label_smoothing) + self.label_smoothing / num_classes

    def to(self, device: torch.device) -> Loss:
        """The same on another device."""
        return Loss(
            self.name,
            self.label_smoothing,
            self.gamma,
            None if self.class_weights is None else self.class_weights.to(device),
            None if self.log_prior is None else self.log_prior.to(device),
        )
