"""Pixels in, logits out: from the zoo, from timm, or your own; and what is said no to."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vidi import model, optim
from vidi.augment import views
from vidi.augment_settings import WholeViews
from vidi.config import read
from vidi.errors import ConfigError, UsageError
from vidi.model import Classifier
from vidi.testing import check_model
from vidi.zoo import MODELS

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def build(name: Any = "small_cnn", **settings: Any) -> Classifier:
    channels = settings.get("channels", 3)
    asked = {
        "num_classes": 5,
        "image_px": 32,
        "channels": 3,
        "mean": (MEAN + MEAN)[:channels],
        "std": (STD + STD)[:channels],
        **settings,
    }
    return model.build(name, **asked)


def pixels(count: int = 4, channels: int = 3, image_px: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, image_px, image_px)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def tiny(num_classes: int) -> nn.Module:
    """What a user writes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def flat(num_inputs: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, num_outputs))


# Pixels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_pixels_are_normalised_inside(
    channels: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    classifier = build(channels=channels)
    images = pixels(channels=channels).to(dtype).contiguous(memory_format=memory_format)
    mean = torch.tensor((MEAN + MEAN)[:channels]).view(1, -1, 1, 1)
    std = torch.tensor((STD + STD)[:channels]).view(1, -1, 1, 1)
    before = images.clone()
    normal = classifier.normalise(images)
    torch.testing.assert_close(normal, (before.float() / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before), "the user's own tensor was changed"


def test_uint8_and_float_pixels_in_any_layout_give_the_same_logits() -> None:
    classifier = build().eval()
    with torch.inference_mode():
        expected = classifier(pixels())
        torch.testing.assert_close(classifier(pixels().float()), expected)
        last = pixels().contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(classifier(last), expected, rtol=1e-4, atol=1e-4)


def test_normalisation_travels_with_the_weights() -> None:
    classifier, other = build(), build(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    other.load_state_dict(classifier.state_dict())
    with torch.inference_mode():
        assert torch.equal(classifier.eval()(pixels()), other.eval()(pixels()))


def test_a_gradient_flows_to_float_pixels() -> None:
    images = pixels().float().requires_grad_()
    build().eval()(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_classifier_can_be_exported_for_any_batch() -> None:
    classifier = build().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(classifier, (pixels(2),), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(pixels(5)), classifier(pixels(5)))


# Parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "efficientnet_lite0", tiny])
def test_features_are_what_the_head_sees(name: Any) -> None:
    classifier = build(name).eval()
    with torch.inference_mode():
        features = classifier.features(pixels())
        assert features.shape == (4, classifier.num_features)
        torch.testing.assert_close(classifier.head(features), classifier(pixels()))


@pytest.mark.parametrize("kind", ["flip", "shift", "shift_flip"])
def test_a_classifier_says_the_mean_over_its_views(kind: WholeViews) -> None:
    classifier, images = build().eval(), pixels()
    features = classifier.features(images)
    each = [classifier(view) for view in views(images, kind, images.shape[2])]
    classifier.views = kind
    torch.testing.assert_close(classifier(images), sum(each) / len(each))
    if kind == "flip":
        torch.testing.assert_close(classifier(images), classifier(images.flip(3)))
    assert torch.equal(classifier.features(images), features)
    torch.testing.assert_close(model.fused(classifier)(images), classifier(images))
    # Training looks once.
    seen = copy.deepcopy(classifier).train()(images)
    classifier.views = "plain"
    torch.testing.assert_close(classifier.train()(images), seen)


def test_a_network_without_a_linear_head_has_no_features() -> None:
    classifier = build(
        lambda num_classes: nn.Sequential(nn.Conv2d(3, num_classes, 32), nn.Flatten())
    )
    with pytest.raises(UsageError, match="no linear layer with 5 outputs"):
        classifier.features(pixels())
    assert model.facts(classifier).num_features is None


def test_frozen_stages_do_not_learn_and_the_rest_does() -> None:
    classifier = build("resnet18")
    assert model.freeze(classifier, 3) == ("stem", "layer1", "layer2")
    frozen = {name for name, p in classifier.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.split(".")[1] in {"conv1", "bn1", "layer1", "layer2"} for name in frozen)
    model.freeze(classifier, 0)
    assert all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize("num_stages", [-1, 6, 7])
def test_the_head_cannot_be_frozen(num_stages: int) -> None:
    with pytest.raises(UsageError, match="cannot be frozen"):
        model.freeze(build("resnet18"), num_stages)


def test_frozen_batch_norms_keep_their_statistics_and_learn_their_scale() -> None:
    classifier = build()
    model.freeze_batch_norm(classifier)
    before = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    classifier.eval().train()(pixels()).sum().backward()
    for name, buffer in classifier.named_buffers():
        assert torch.equal(buffer, before[name]), name
    norm = next(m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.grad is not None
    model.freeze_batch_norm(classifier, frozen=False)
    classifier.train()(pixels())
    assert not torch.equal(norm.running_mean, before["network.block1.bn1.running_mean"])  # type: ignore[arg-type]


def test_a_copy_shares_nothing() -> None:
    classifier = build()
    other = copy.deepcopy(classifier)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(p.abs().sum() > 0 for p in classifier.parameters() if p.ndim > 1)
    assert other.name == classifier.name


def test_facts_count_parameters_and_multiply_adds() -> None:
    facts = model.facts(build("mlp", channels=1, image_px=28, num_classes=10))
    assert facts.parameters == 784 * 500 + 500 + 500 * 10 + 10
    assert facts.multiply_adds == 784 * 500 + 500 * 10
    assert facts.num_features == 500
    assert facts.stages == ("hidden0", "head")


@pytest.mark.parametrize(
    ("name", "image_px", "parameters", "multiply_adds"),
    [
        ("resnet18", 224, 11_689_512, 1.814e9),
        ("efficientnet_b0", 224, 5_288_548, 0.386e9),
        ("efficientnet_lite0", 224, 4_652_008, 0.385e9),
    ],
)
def test_facts_are_the_published_ones(
    name: str, image_px: int, parameters: int, multiply_adds: float
) -> None:
    facts = model.facts(build(name, image_px=image_px, num_classes=1000))
    assert facts.parameters == parameters
    assert facts.multiply_adds == pytest.approx(multiply_adds, rel=0.01)


def test_facts_leave_the_model_as_it_was() -> None:
    classifier = build().train()
    before = copy.deepcopy(classifier.state_dict())
    model.facts(classifier)
    assert classifier.training
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "efficientnet_lite0"])
def test_fused_batch_norms_are_gone_and_the_logits_stay(name: str) -> None:
    classifier = build(name)
    classifier.train()(pixels(8))
    classifier.eval()
    fused = model.fused(classifier)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in classifier.modules())
    with torch.inference_mode():
        torch.testing.assert_close(fused(pixels()), classifier(pixels()), rtol=1e-3, atol=1e-4)


def test_a_convolution_that_is_used_twice_cannot_be_fused() -> None:
    class Twice(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.bias, 3.0)
            nn.init.constant_(self.norm.weight, 3.0)
            self.head = nn.Linear(4, num_classes)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            logits: Tensor = self.head((maps + self.norm(maps)).mean((2, 3)))
            return logits

    with pytest.raises(UsageError, match="cannot be fused"):
        model.fused(build(Twice))


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "efficientnet_lite0", tiny])
def test_checkpointed_activations_change_nothing_but_memory(name: Any) -> None:
    plain = build(name, **({} if name is tiny else {"dropout": 0.5}))
    other = copy.deepcopy(plain)
    model.checkpoint_activations(other)
    assert other.state_dict().keys() == plain.state_dict().keys()
    for classifier in (plain, other):
        torch.manual_seed(0)
        classifier.train()(pixels()).square().sum().backward()
    for (named, ours), theirs in zip(other.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, msg=named)
    for (named, kept), again in zip(other.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(kept, again), named


def test_checkpointed_activations_take_less_memory_and_survive_a_copy() -> None:
    classifier = build("resnet18")
    before = model.activation_bytes(classifier)
    model.checkpoint_activations(classifier)
    assert model.activation_bytes(classifier) < 0.25 * before
    other = copy.deepcopy(classifier)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert classifier.eval()(pixels()).abs().sum() > 0
    assert other.eval()(pixels()).abs().sum() == 0


def test_activation_bytes_are_those_of_one_image_and_nothing_is_changed() -> None:
    classifier = build("mlp", channels=1, image_px=28, dropout=0.0)
    state = copy.deepcopy(classifier.state_dict())
    # The pixels for the first layer, and 500 units once: ReLU works in place.
    assert model.activation_bytes(classifier) == 4 * (784 + 500)
    assert all(torch.equal(t, state[name]) for name, t in classifier.state_dict().items())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stem_of_the_small_network_is_computed_from_images(channels: int) -> None:
    classifier = build(channels=channels)
    # Neighbouring pixels alike, as in every picture.
    images = torch.nn.functional.avg_pool2d(pixels(64, channels).float(), 5, 1, 2).to(torch.uint8)
    assert model.start_from(classifier, lambda: images)
    stem = classifier.network.stem
    assert isinstance(stem, nn.Conv2d)
    assert "network.stem.weight" in classifier.state_dict()
    assert "network.stem.weight" not in dict(classifier.named_parameters())
    half = len(stem.weight) // 2
    assert torch.equal(stem.weight[:half], -stem.weight[half:])
    maps = torch.nn.functional.conv2d(classifier.normalise(images), stem.weight[:half])
    flat = maps.transpose(0, 1).flatten(1).double()
    covariance = flat @ flat.T / flat.shape[1]
    # Decorrelated, and of variance one but for the share that counts as noise.
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), rtol=0, atol=0.02)
    assert covariance.diagonal().max() <= 1.05
    assert covariance.diagonal()[0] >= 0.95
    # The same images give the same weights, and a blank image gives numbers.
    again = build(channels=channels)
    model.start_from(again, lambda: images)
    assert torch.equal(again.network.stem.weight, stem.weight)  # type: ignore[union-attr, arg-type]
    model.start_from(again, lambda: torch.zeros_like(images))
    assert again.eval()(pixels(channels=channels)).isfinite().all()


def test_a_network_that_learns_everything_has_nothing_to_compute() -> None:
    classifier = build("resnet18")
    before = copy.deepcopy(classifier.state_dict())

    def unasked() -> Tensor:
        raise AssertionError("images were asked for")

    assert not model.start_from(classifier, unasked)
    assert all(torch.equal(t, before[name]) for name, t in classifier.state_dict().items())


def test_a_head_of_zeros_gives_every_class_the_same() -> None:
    classifier = build()
    model.reset_head(classifier)
    assert classifier.eval()(pixels()).abs().max() == 0.0


def test_a_head_fitted_on_features_is_taken_over() -> None:
    classifier = build().eval()
    weight, bias = torch.randn(5, classifier.num_features), torch.randn(5)
    model.set_head(classifier, weight, bias)
    features = classifier.features(pixels())
    torch.testing.assert_close(classifier(pixels()), features @ weight.T + bias)
    with pytest.raises(UsageError, match="the head's weight is"):
        model.set_head(classifier, weight.T, bias)


def test_the_list_of_models_says_what_is_at_hand() -> None:
    listed = {line.name: line for line in model.list_models("lite")}
    assert set(listed) == {f"efficientnet_lite{number}" for number in range(5)}
    assert listed["efficientnet_lite0"].at_hand
    assert not listed["efficientnet_lite4"].at_hand
    assert listed["efficientnet_lite0"].parameters == 4_652_008
    facts = model.facts(build("efficientnet_lite0", image_px=224, num_classes=1000))
    assert listed["efficientnet_lite0"].multiply_adds == facts.multiply_adds
    assert listed["efficientnet_lite0"].licence == "Apache-2.0"
    everything = {line.name for line in model.list_models()}
    assert everything == set(MODELS)
    # The pattern of a shell, whole names.
    assert {line.name for line in model.list_models("resnet?0")} == {"resnet50"}


def test_models_of_timm_are_listed_by_name_and_tag() -> None:
    (line,) = model.list_models("timm:resnet18.a1_in1k", timm=True)
    assert (line.image_px, line.licence, line.at_hand) == (224, "apache-2.0", False)
    assert (line.parameters, line.multiply_adds) == (11_689_512, 1_814_073_344)
    assert not model.list_models("timm:resnet18.a1_in1k")


def test_training_in_bfloat16_computes_depthwise_layers_in_float32() -> None:
    classifier = build("efficientnet_lite0")
    seen: set[torch.dtype] = set()
    convolution = torch.nn.functional.conv2d

    def watched(maps: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        out = convolution(maps, weight, *rest, **more)
        if weight.shape[1] == 1:
            seen.add(out.dtype)
        return out

    def step(lowered: bool) -> list[Tensor]:
        classifier.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            logits = classifier.eval()(pixels())
        logits.float().square().sum().backward()
        return [p.grad.clone() for p in classifier.parameters() if p.grad is not None]

    expected = step(lowered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", watched)
        patch.setattr(
            nn.Conv2d,
            "_conv_forward",
            lambda c, x, w, b: watched(x, w, b, c.stride, c.padding, c.dilation, c.groups),
        )
        got = step(lowered=True)
        assert seen == {torch.float32}
        seen.clear()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            classifier(pixels())
        assert seen == {torch.bfloat16}
    for ours, reference in zip(got, expected, strict=True):
        assert (ours - reference).norm() <= 0.1 * reference.norm() + 1e-3


# Pretrained --------------------------------------------------------------------------------------


def test_packaged_weights_load_and_say_what_became_of_each() -> None:
    classifier = build("efficientnet_lite0", image_px=224, weights="imagenet")
    fit = classifier.fit
    assert fit is not None
    assert len(fit.matched) == 294
    assert fit.replaced == ("classifier.1.weight", "classifier.1.bias")
    assert not fit.missing
    assert not fit.unexpected
    assert str(fit) == "294 tensors loaded; the head is new"
    facts = model.weights_facts("efficientnet_lite0", "imagenet")
    assert facts is not None
    assert (facts.image_px, facts.mean, facts.crop_fraction) == (224, (0.5, 0.5, 0.5), 0.875)
    assert model.weights_facts("efficientnet_lite0", "none") is None


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_grey_image_gives_the_same_maps_whatever_the_channels(channels: int) -> None:
    colour = build("efficientnet_lite0", image_px=96, weights="imagenet", mean=(0.5,) * 3).eval()
    other = build(
        "efficientnet_lite0",
        image_px=96,
        channels=channels,
        mean=(0.5,) * channels,
        std=(STD[0],) * channels,
        weights="imagenet",
    ).eval()
    grey = pixels(channels=1, image_px=96)
    reference = colour
    reference.scale.fill_(float(other.scale.flatten()[0]))
    reference.shift.fill_(float(other.shift.flatten()[0]))
    with torch.inference_mode():
        expected = reference.features(grey.expand(-1, 3, -1, -1).contiguous())
        got = other.features(grey.expand(-1, channels, -1, -1).contiguous())
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert other.fit is not None
    assert other.fit.reshaped == {
        "features.0.0.weight": f"made to take {channels} instead of 3 channels"
    }


def test_pretrained_weights_fit_small_images() -> None:
    classifier = build("efficientnet_lite0", image_px=32, weights="imagenet").eval()
    with torch.inference_mode():
        assert classifier(pixels()).isfinite().all()


# Your own ----------------------------------------------------------------------------------------


def test_your_own_function_becomes_a_classifier() -> None:
    classifier = build(tiny)
    assert classifier(pixels()).shape == (4, 5)
    assert classifier.name.endswith(":tiny")
    assert [name for name, _ in classifier.stages] == ["0", "2", "6"]


def test_your_own_function_is_told_what_it_asks_for() -> None:
    told: dict[str, Any] = {}

    def grey(num_classes: int, *, channels: int, image_px: int, dropout: float = 0.1) -> nn.Module:
        told.update(channels=channels, image_px=image_px, dropout=dropout)
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_px**2, num_classes))

    build(grey, channels=1, image_px=16, dropout=0.3)
    assert told == {"channels": 1, "image_px": 16, "dropout": 0.3}


def test_a_model_is_found_by_module_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "from torch import nn\n"
        "def flat(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("mine_for_test:flat").name == "mine_for_test:flat"
    with pytest.raises(ConfigError, match="did you mean 'flat'"):
        build("mine_for_test:flatt")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda num_classes: flat(3072, num_classes - 1), r"gives \(2, 4\)"),
        (lambda num_classes: flat(9, num_classes), "fails on"),
        (lambda num_classes: f"resnet{num_classes}", "gives a str"),
        (lambda: nn.Flatten(), "takes no number of classes"),
    ],
)
def test_what_your_own_function_does_wrong_is_said_before_training(
    function: Callable[..., Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        build(function)


# timm --------------------------------------------------------------------------------------------


def test_a_timm_model_is_a_classifier_like_any_other() -> None:
    classifier = build("timm:resnet10t", channels=1).eval()
    with torch.inference_mode():
        features = classifier.features(pixels(channels=1))
        torch.testing.assert_close(classifier.head(features), classifier(pixels(channels=1)))
    assert [name for name, _ in classifier.stages][-1] == "fc"


def test_timm_s_pixels_come_with_its_weights() -> None:
    facts = model.weights_facts("timm:resnet10t", "imagenet")
    assert facts is not None
    assert facts.image_px == 176
    assert facts.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_name_that_only_timm_knows_is_taken_from_timm() -> None:
    assert build("mobilenetv3_small_050").name == "timm:mobilenetv3_small_050"


# What a cache of the hub holds after two downloads; written before huggingface_hub looks at it.
HUB_CACHE = """
import json, os, sys
from pathlib import Path
import safetensors.torch, torch
from vidi import model

def keep(repository, **files):
    folder = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name.replace("__", ".")).write_bytes(content)

torch.manual_seed(0)
timm = model.import_timm()
known = timm.create_model("resnet10t").state_dict()
own = timm.create_model("resnet10t", num_classes=7).state_dict()
keep("timm/resnet10t.c3_in1k", model__safetensors=safetensors.torch.save(known))
pixels = {"input_size": [3, 48, 48], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
          "interpolation": "bilinear", "crop_pct": 0.9, "num_classes": 7,
          "first_conv": "conv1.0", "classifier": "fc"}
config = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": pixels}
keep("someone/tiny", config__json=json.dumps(config).encode(),
     model__safetensors=safetensors.torch.save(own))

def build(name, **settings):
    asked = {"num_classes": 7, "image_px": 48, "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return model.build(name, **{**asked, **settings})

def same(classifier, state, *, but=()):
    found = classifier.network.state_dict()
    return all(torch.equal(found[n], state[n]) for n in state if not n.startswith(but))
"""


@pytest.mark.parametrize(
    "check",
    [
        # timm's own weights.
        """
got = build("timm:resnet10t.c3_in1k", weights="imagenet")
assert same(got, known, but=("fc.",))
assert str(got.fit).endswith("the head is new"), got.fit
assert "loaded" in model.facts(got).loaded
(line,) = model.list_models("timm:resnet10t.c3_in1k", timm=True)
assert line.at_hand
grey = build("timm:resnet10t.c3_in1k", weights="imagenet", channels=1, mean=(.5,), std=(.5,))
assert "conv1.0.weight made to take 1 channels" in str(grey.fit), grey.fit
""",
        # A model of the hub, whose pixels come with it.
        """
hub = model.own("hf-hub:someone/tiny")
got = build(hub, weights="hub")
assert got.name == "hf-hub:someone/tiny"
assert same(got, own)
facts = model.weights_facts("hf-hub:someone/tiny", "hub")
assert (facts.image_px, facts.mean, facts.crop_fraction) == (48, (0.1, 0.2, 0.3), 0.9)
again = build(hub, weights="hub", saved=got.state_dict())
again.load_state_dict(got.state_dict())
""",
        # What is not there cannot be had.
        """
from vidi.errors import UsageError
for name, weights in (("timm:resnet14t.c3_in1k", "imagenet"), ("hf-hub:no/where", "hub")):
    try:
        build(model.own(name) if weights == "hub" else name, weights=weights)
    except UsageError as error:
        assert "cannot be had" in error.message, error
        assert "model.weights" in error.fix
    else:
        raise AssertionError(name)
""",
    ],
)
def test_weights_in_the_cache_of_the_hub_need_no_network(check: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB_CACHE + check],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_model_of_the_hub_is_named_on_the_command_line_only(tmp_path: Path) -> None:
    name = "hf-hub:someone/tiny"
    model.check_name(name)
    with pytest.raises(UsageError, match="OWNER/NAME"):
        model.check_name("hf-hub:../../tiny")
    (tmp_path / "asked.toml").write_text(f'[model]\nname = "{name}"\n')
    with pytest.raises(ConfigError, match="not taken from a file") as caught:
        read(tmp_path / "asked.toml")
    assert f"--model {name}" in caught.value.fix


def test_a_timm_file_keeps_the_pixels_of_timm_s_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(build("timm:resnet10t").network.state_dict(), path)
    facts = model.weights_facts("timm:resnet10t", str(path))
    assert facts == model.weights_facts("timm:resnet10t", "imagenet")


def test_position_embeddings_of_timm_do_not_decay() -> None:
    classifier = build("timm:vit_tiny_patch16_224", image_px=32)
    resting = {
        name
        for group in optim.groups(classifier)
        if not group.decays
        for name, parameter in classifier.named_parameters()
        if any(parameter is one for one in group.parameters)
    }
    assert {"network.pos_embed", "network.cls_token"} <= resting
    assert "network.head.weight" not in resting


def test_torchvision_and_timm_import_beside_a_torch_for_processors() -> None:
    code = "from vidi import model; model.import_timm(); import torchvision"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)


# What cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnt18", "did you mean 'resnet18'"),
        ("timm:resnet10x", "did you mean 'resnet10t'"),
        ("timm:hf-hub:someone/model", "not the name of a timm model"),
        ("os.system", "there is no model"),
        ("../../resnet18", "there is no model"),
        ("/etc/passwd", "there is no model"),
        ("hf-hub:someone/model", "not taken from a file"),
        ("", "there is no model"),
    ],
)
def test_a_name_that_is_no_model_is_refused_and_nothing_is_imported(
    name: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        build(name)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_classes": 1}, "two or more classes"),
        ({"num_classes": 0}, "two or more classes"),
        ({"channels": 0, "mean": (), "std": ()}, "at least one"),
        ({"mean": (0.5,)}, "channels"),
        ({"std": (0.5, 0.0, 0.5)}, "above zero"),
        ({"mean": (0.5, float("nan"), 0.5)}, "above zero"),
        ({"image_px": 7}, "from 8 px on"),
        ({"stochastic_depth": 0.1}, "no stochastic depth"),
        ({"weights": "imagenet"}, "no weights 'imagenet'"),
    ],
)
def test_a_request_that_cannot_be_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build(**settings)


# check_model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "small_cnn", "resnet18", "efficientnet_lite0"])
def test_our_own_models_pass_the_check_for_yours(name: str) -> None:
    check_model(MODELS[name].build)


def test_a_user_s_model_passes_the_check() -> None:
    check_model(tiny)


class Wrong(nn.Module):
    """A model that does one thing wrong."""

    def __init__(self, num_classes: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv2d(3, 8, 32)
        self.norm = nn.BatchNorm2d(8) if fault == "batch norm" else nn.Identity()
        self.head = nn.Linear(8, num_classes)
        self.unused = nn.Linear(2, 2) if fault == "unused" else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        if self.fault == "input":
            images.mul_(2)
        if self.fault == "noise":
            images = images + torch.randn_like(images)
        if self.fault == "numpy" and self.training:
            images = images * float(np.random.rand())
        if self.fault == "python" and self.training:
            images = images * random.random()
        if self.fault == "mixes":
            images = images - images.mean(dim=0)
        if self.fault == "no grad":
            with torch.no_grad():
                return self.head(self.conv(images).flatten(1))  # type: ignore[no-any-return]
        logits: Tensor = self.head(self.norm(self.conv(images)).flatten(1))
        if self.fault == "nan":
            return logits / (logits - logits)
        return logits[0] if self.fault == "shape" else logits


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("shape", "not logits of shape"),
        ("input", "changes the images"),
        ("noise", "random numbers in evaluation"),
        ("numpy", "no seed of a run reaches"),
        ("python", "no seed of a run reaches"),
        ("mixes", "the rest of its batch"),
        ("batch norm", "a batch of 1"),
        ("unused", "'unused.weight' gets no gradient"),
        ("no grad", "no gradient reaches"),
        ("nan", "not numbers"),
    ],
)
def test_the_check_says_what_is_wrong_with_a_model(fault: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_model(lambda num_classes: Wrong(num_classes, fault))
