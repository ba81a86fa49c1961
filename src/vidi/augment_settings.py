"""What the plan decides about augmentation: plain values, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vidi.facts import Frozen

Crop = Literal["none", "pad", "resized"]
Flip = Literal["none", "random", "alternating"]
Policy = Literal["none", "light", "medium", "strong"]
# Several views of one image, see augment/views.py: those as large as the image, and all.
WholeViews = Literal["plain", "flip", "shift", "shift_flip"]
ViewKind = Literal[WholeViews, "five", "ten"]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
# Low and high end of a range.
Share = tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]]
Ratio = tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]]


class AugmentSettings(Frozen):
    """Every number of the training-time augmentation of one stage.

    The defaults are: cut the middle out, change nothing else.
    """

    # Side of the square images that the model gets.
    image_px: Annotated[int, Field(ge=1)]
    # Columns of the soft targets that mixup and cutmix make.
    num_classes: Annotated[int, Field(ge=1)]
    # "none": the middle; "pad": reflect-pad, cut a random window; "resized": a random box, resized.
    crop: Crop = "none"
    crop_padding_px: Annotated[int, Field(ge=0)] = 0
    # Area of the random box as a share of the image, and its width divided by its height. The
    # defaults are those of Szegedy et al. 2014 (arXiv 1409.4842), which everyone uses.
    crop_scale: Share = (0.08, 1.0)
    crop_ratio: Ratio = (3 / 4, 4 / 3)
    horizontal_flip: Flip = "none"
    vertical_flip: bool = False
    # Further changes, see POLICIES in augment/policy.py.
    policy: Policy = "none"
    # The images are without colour, so the policy leaves changes of colour out.
    grey: bool = False
    # 0 switches each of these off.
    mixup_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    cutmix_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    erase_probability: Probability = 0.0

    @property
    def shifts(self) -> bool:
        """Whether training shows images moved by a few pixels."""
        return self.crop == "pad" and self.crop_padding_px > 0

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if low > high:
                raise ValueError(f"{name} runs from {low} down to {high}; give the lower end first")
        if self.crop != "pad" and self.crop_padding_px:
            raise ValueError(f"crop_padding_px is only used by crop 'pad', not by '{self.crop}'")
        return self
