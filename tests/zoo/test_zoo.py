"""Every member of the zoo keeps the promises that the rest of vidi builds on."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vidi.zoo import IMAGENET, MODELS
from vidi.zoo.layers import StochasticDepth

# One of each family; `slow` runs the others, which differ in numbers only or are very large.
SMALL = (
    "mlp",
    "lenet5",
    "two_conv",
    "small_cnn",
    "small_cnn_x2",
    "small_cnn_x3",
    "small_cnn_x4",
    "small_cnn_x2_mean2",
    "small_cnn_x3_mean2",
    "resnet18",
    "efficientnet_b0",
    "efficientnet_lite0",
)
EACH = [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def build(name: str, *, image_px: int, channels: int = 3, **settings: Any) -> Any:
    spec = MODELS[name]
    asked = {"num_classes": 7, "image_px": image_px, "channels": channels, **settings}
    known = inspect.signature(spec.build).parameters
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spec.build(**{key: value for key, value in asked.items() if key in known})


def images(image_px: int, channels: int = 3, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, image_px, image_px, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_stages_hold_every_parameter_once_and_end_with_the_head(name: str) -> None:
    model: Any
    with torch.device("meta"):
        model = MODELS[name].build(num_classes=7)
    staged = [id(p) for _, module in model.stages for p in module.parameters()]
    assert sorted(staged) == sorted(id(parameter) for parameter in model.parameters())
    names = [stage for stage, _ in model.stages]
    assert len(set(names)) == len(names)
    assert names[-1] == "head"
    head = model.get_submodule(model.head_name)
    assert isinstance(head, nn.Linear)
    last = {id(parameter) for parameter in model.stages[-1][1].parameters()}
    assert last == {id(parameter) for parameter in head.parameters()}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", EACH)
def test_logits_have_their_shape_and_every_parameter_a_gradient(name: str, channels: int) -> None:
    model = build(name, image_px=32, channels=channels)
    logits = model(images(32, channels, count=3))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_several_small_networks_learn_from_parts_of_a_batch_and_answer_with_their_mean() -> None:
    several = build("small_cnn_x2_mean2", image_px=16, networks=4)
    alone = []
    for number, part in enumerate(several.head.weight.chunk(4, dim=1)):
        weights = {"head.weight": part, "head.bias": several.head.bias}
        for name, value in several.state_dict().items():
            block, _, rest = name.partition(".")
            if block == "stem":
                weights[name] = value
            elif rest.startswith(f"{number}."):
                weights[f"{block}.{rest.partition('.')[2]}"] = value
        alone.append(build("small_cnn_x2", image_px=16))
        alone[-1].load_state_dict(weights)
    batch = images(16, count=10)
    with torch.no_grad():
        mean = torch.stack([one.eval()(batch) for one in alone]).mean(dim=0)
        torch.testing.assert_close(several.eval()(batch), mean)
        parts = zip(alone, batch.tensor_split(4), strict=True)
        apart = torch.cat([one.train()(part) for one, part in parts])
    logits = several.train()(batch)
    torch.testing.assert_close(logits.detach(), apart)
    logits[:3].sum().backward()
    taught = [bool(one.conv1.weight.grad.any()) for one in several.block2]
    assert taught == [True, False, False, False]
    # Of too few images some networks have none to learn from.
    assert several(batch[:3]).shape == (3, 7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a C++ compiler")
def test_compiled_in_bfloat16_the_small_network_has_the_gradients_that_it_has_in_float32() -> None:
    # The compiler recomputes in float32 what was rounded to bfloat16, so a backward pass that looks
    # for the values equal to the maximum (that of `amax`) finds none of them, and divides by zero.
    model = build("small_cnn", image_px=32).train()
    batch, labels = images(32, count=64), torch.arange(64) % 7

    def gradients(called: Any, *, lower: bool) -> dict[str, Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            logits = called(batch)
        loss: Any = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        return {
            parameter_name: parameter.grad.clone()
            for parameter_name, parameter in model.named_parameters()
        }

    exact = gradients(model, lower=False)
    for parameter_name, gradient in gradients(torch.compile(model), lower=True).items():
        off = (gradient - exact[parameter_name]).norm() / exact[parameter_name].norm()
        assert off < 0.5, parameter_name


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_promise_is_kept_at_the_size_that_a_network_is_made_for(
    name: str, channels: int, tmp_path: Path
) -> None:
    size = MODELS[name].image_px
    known = inspect.signature(MODELS[name].build).parameters
    # Every branch takes part.
    still: dict[str, Any] = {key: 0.0 for key in ("dropout", "stochastic_depth") if key in known}
    # Of several networks each has its part of the batch to learn from.
    count = 2 if size <= 64 else 1
    model = build(name, image_px=size, channels=channels, **still)
    batch = images(size, channels, count)
    model(batch).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
        parameter.grad = None
    model.eval()
    exported = torch.export.export(model, (batch,))
    with torch.inference_mode():
        logits = model(batch)
        assert logits.shape == (count, 7)
        assert torch.equal(model(batch), logits)
        torch.testing.assert_close(exported.module()(batch), logits, rtol=1e-4, atol=1e-4)
        safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
        other = build(name, image_px=size, channels=channels).eval()
        for value in other.state_dict().values():
            value.zero_()
        other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
        assert torch.equal(other(batch), logits)
        other.to(memory_format=torch.channels_last)
        last = other(batch.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("image_px", [8, 11, 28, 63, 96])
@pytest.mark.parametrize("name", EACH)
def test_any_size_from_the_smallest_on(name: str, image_px: int) -> None:
    model = build(name, image_px=image_px).eval()
    with torch.inference_mode():
        logits = model(images(image_px))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_deterministic_and_independent_of_memory_format(name: str) -> None:
    model = build(name, image_px=32).eval()
    batch = images(32)
    with torch.inference_mode():
        first, second = model(batch), model(batch)
        assert torch.equal(first, second)
        last = model.to(memory_format=torch.channels_last)
        third = last(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(first, third, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_features_and_head_make_the_logits(name: str) -> None:
    model = build(name, image_px=32).eval()
    head = model.get_submodule(model.head_name)
    with torch.inference_mode():
        features = model.embed(images(32))
        assert features.shape == (2, head.in_features)
        torch.testing.assert_close(head(features), model(images(32)))


@pytest.mark.parametrize("name", SMALL)
def test_weights_survive_safetensors_to_the_bit(name: str, tmp_path: Path) -> None:
    model, other = build(name, image_px=32), build(name, image_px=32)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    with torch.inference_mode():
        assert torch.equal(model.eval()(images(32)), other.eval()(images(32)))


@pytest.mark.parametrize("name", SMALL)
def test_torch_export_gives_the_same_logits_for_any_batch(name: str) -> None:
    model = build(name, image_px=32).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images(32),), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        for count in (1, 5):
            expected = model(images(32, count=count))
            torch.testing.assert_close(exported.module()(images(32, count=count)), expected)


@pytest.mark.parametrize("name", SMALL)
def test_dropout_and_stochastic_depth_act_in_training_only(name: str) -> None:
    known = inspect.signature(MODELS[name].build).parameters
    for setting in {"dropout", "stochastic_depth"} & set(known):
        # Nothing else that is random.
        still: dict[str, Any] = {
            key: 0.0 for key in ("dropout", "stochastic_depth") if key in known
        }
        model = build(name, image_px=32, **{**still, setting: 0.9})
        batch = images(32, count=8)
        torch.manual_seed(0)
        first, second = model.train()(batch), model(batch)
        assert not torch.equal(first, second), setting
        calm = build(name, image_px=32, **still).train()
        assert torch.equal(calm(batch), calm(batch)), "without it, training is not random"
        model.eval()
        assert torch.equal(model(batch), model(batch)), setting


def test_stochastic_depth_keeps_the_mean_and_drops_whole_images() -> None:
    layer = StochasticDepth(0.25).train()
    torch.manual_seed(0)
    out = layer(torch.ones(4000, 2, 3))
    per_image = out.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert set(per_image[:, 0].mul(3).round().tolist()) == {0.0, 4.0}
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert StochasticDepth(1.0).train()(torch.ones(8, 2)).abs().max() == 0.0


def test_resnet_leaves_out_later_blocks_more_often() -> None:
    model = build("resnet18", image_px=32, stochastic_depth=0.7)
    rates = [m.probability for m in model.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.1 * index for index in range(8)])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "efficientnet_lite0"])
def test_a_small_image_keeps_its_size_through_the_stem(name: str) -> None:
    seen: dict[int, torch.Size] = {}
    for image_px in (32, 96):
        model = build(name, image_px=image_px).eval()
        maps: list[Tensor] = []
        last = model.layer4 if name == "resnet18" else model.features
        last.register_forward_hook(lambda module, inputs, out, maps=maps: maps.append(out))  # noqa: ARG005
        with torch.inference_mode():
            model(images(image_px))
        seen[image_px] = maps[0].shape
    # A third of the side, but not less than a third of the maps: the stem reduced by less.
    assert seen[32][2] >= seen[96][2]


def test_vgg_leaves_out_only_the_poolings_that_would_leave_nothing() -> None:
    def poolings(image_px: int) -> int:
        with torch.device("meta"):
            model = build("vgg11", image_px=image_px)
        return sum(isinstance(module, nn.MaxPool2d) for module in model.modules())

    assert {size: poolings(size) for size in (8, 28, 32, 64, 224)} == {
        8: 2,
        28: 3,
        32: 4,
        64: 5,
        224: 5,
    }


def test_the_mlp_of_the_tutorials_has_784_500_10_units() -> None:
    model = MODELS["mlp"].build(num_classes=10)
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(500, 784), (10, 500)]
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.modules())


def test_every_published_weight_is_for_a_member_and_says_where_from() -> None:
    assert set(IMAGENET) <= set(MODELS)
    for name, weights in IMAGENET.items():
        assert weights.source.startswith(("https://", "package:")), name
        assert len(weights.sha256) in (8, 64)
        assert 0.5 < weights.accuracy < 0.9
        assert 0.8 < weights.pixels.crop_fraction <= 1.0
        assert min(weights.pixels.std) > 0.0
