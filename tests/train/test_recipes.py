"""What changes along a run, and what is kept beside the weights, as a whole run shows it."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import vidi
from vidi.augment import ImageRandom
from vidi.batch import Batch
from vidi.config import Config
from vidi.errors import ConfigError, Interrupted, TrainingError
from vidi.plan import Plan
from vidi.run import Run
from vidi.train import Extensions, Job, Progress, State, build_job, build_state, loop, prepare
from vidi.train.saving import Saver

SETTINGS: dict[str, object] = {
    "train.epochs": 1,
    "model.name": "mlp",
    "train.batch_size": 64,
    "machine.threads": 1,
}


def train(out: Path, *, show: Any = None, transforms: Any = (), **changes: object) -> Run:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return vidi.train("digits", settings=settings, out=out, show=show, transforms=transforms)


def weights(run: Run, name: str = "model") -> dict[str, Tensor]:
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    return safetensors.torch.load(checkpoint.read(f"{name}.safetensors"))


def notes(run: Run) -> list[str]:
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    return list(checkpoint.state["notes"])


def stop_at(step: int) -> Callable[[object], None]:
    def show(what: object) -> None:
        if isinstance(what, Progress) and (what.step, what.phase) == (step, "train"):
            os.kill(os.getpid(), signal.SIGINT)

    return show


RECIPES: dict[str, dict[str, object]] = {
    "growing images": {"model__name": "small_cnn", "data__image_px": 16,
                       "train__progressive_px": (8, 12, 16), "train__epochs": 2},
    "plain average of the end": {"train__swa_fraction": 0.4},
    "sharpness-aware": {"train__sam_rho": 0.05},
    "plateau": {"train__schedule": "plateau", "train__epochs": 3,
                "train__schedule_settings": {"patience": 0, "threshold": 0.9}},
    "step": {"train__schedule": "step", "train__schedule_settings": {"every_fraction": 0.25}},
    "bce, weighted": {"train__loss": "bce", "train__imbalance": "weighted"},
    "logit adjustment": {"train__imbalance": "logit_adjustment"},
    "schedule-free": {"train__optimizer": "adamw_schedule_free"},
    "fused, augmented beside": {"machine__fused": True, "machine__augment_on": "host"},
    "recomputed activations": {"model__name": "small_cnn", "machine__recompute": True},
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_and_continues_exactly(name: str, tmp_path: Path) -> None:
    changes = RECIPES[name]
    straight = train(tmp_path / "straight", **changes)
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(stopped, show=stop_at(9), **changes)
    continued = train(stopped, **changes)
    assert json.loads(straight.read_evaluation("test"))["accuracy"] > 0.2
    assert straight.metrics.path.read_bytes() == continued.metrics.path.read_bytes()
    ours, theirs = weights(straight), weights(continued)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_images_grow_as_planned(tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []

    def watch(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng
        seen.append((done, batch.images.shape[-1]))
        return batch

    train(tmp_path / "run", transforms=(watch,), **RECIPES["growing images"])
    sizes = [size for _, size in seen]
    assert sizes == sorted(sizes)
    assert set(sizes) == {8, 12, 16}
    assert sizes.count(8) == pytest.approx(len(sizes) / 3, abs=1)


def test_the_plain_average_is_the_mean_of_the_last_weights(tmp_path: Path) -> None:
    kept: list[Tensor] = []

    def show(what: object) -> None:
        if isinstance(what, Progress) and what.phase == "train":
            kept.append(models[0].state_dict()["head.weight"].clone())

    models: list[nn.Module] = []

    class Tiny(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.head = nn.Linear(64, num_classes)
            models.append(self)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(images.flatten(1))
            return logits

    settings = {**SETTINGS, "train.swa_fraction": 0.5, "train.epochs": 2}
    del settings["model.name"]
    run = vidi.train("digits", settings=settings, out=tmp_path / "run", model=Tiny, show=show)
    average = weights(run, "ema")["network.head.weight"]
    torch.testing.assert_close(average, torch.stack(kept[19:]).mean(0))


def test_a_plateau_lowers_the_rate_and_says_so(tmp_path: Path) -> None:
    run = train(tmp_path / "run", train__warmup_fraction=0, **RECIPES["plateau"])
    rates = [line["learning_rate"] for line in run.metrics.read() if line["kind"] == "train"]
    assert rates[-1] == pytest.approx(rates[0] * 0.1)
    assert any("falls to" in note for note in notes(run))


# Pretrained networks.


PRETRAINED: dict[str, object] = {
    "model__name": "efficientnet_lite0", "model__weights": "imagenet", "data__image_px": 32,
    "train__batch_size": 16, "train__epochs": 1,
}  # fmt: skip


@pytest.fixture
def pictures(picture_folder: Callable[..., Path]) -> Path:
    return picture_folder("photos", px=40, a=24, b=24, c=24)


def train_on(data: Path, out: Path, *, show: Any = None, **changes: object) -> Run:
    settings = {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
    return vidi.train(data, settings=settings, out=out, show=show)


@pytest.mark.slow
def test_frozen_stages_stay_as_they_were_and_thaw_from_the_head_on(
    pictures: Path, tmp_path: Path
) -> None:
    frozen = train_on(pictures, tmp_path / "frozen", **PRETRAINED, train__freeze_stages=3)
    thawing = train_on(pictures, tmp_path / "thawing", **PRETRAINED, train__unfreeze_fraction=0.9)
    plain = train_on(pictures, tmp_path / "plain", **PRETRAINED)
    start = train_on(pictures, tmp_path / "start", **PRETRAINED, train__head="only")
    first = "network.features.0.0.weight"
    assert torch.equal(weights(frozen)[first], weights(start)[first])
    assert not torch.equal(weights(plain)[first], weights(start)[first])
    plan = json.loads(thawing.text("plan"))
    counts = [stage["frozen_stages"] for stage in plan["stages"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


@pytest.mark.slow
def test_a_head_is_fitted_on_kept_features_in_no_steps(pictures: Path, tmp_path: Path) -> None:
    said: list[object] = []
    run = train_on(pictures, tmp_path / "run", **PRETRAINED, train__head="only", show=said.append)
    assert any("fitting the head" in line for line in said if isinstance(line, str))
    assert run.checkpoint_steps() == (0,)
    alone = json.loads(run.read_evaluation("test"))["accuracy"]
    first = train_on(pictures, tmp_path / "first", **PRETRAINED, train__head="first")
    assert alone > 0.4
    assert json.loads(first.read_evaluation("test"))["accuracy"] > 0.4
    # Done is done.
    train_on(pictures, tmp_path / "run", **PRETRAINED, train__head="only", show=said.append)
    assert any("already complete" in line for line in said if isinstance(line, str))


# Numbers that are not finite.


def poison(at: range) -> Callable[..., Batch]:
    """Batches of these steps, of a run of five epochs, hold NaN."""

    def transform(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng
        bad = batch.images.float()
        if round(done * 95) in at:
            bad = bad * torch.nan
        return Batch(bad, batch.targets, batch.ids)

    return transform


def test_after_too_many_bad_updates_the_weights_go_back_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    run = train(tmp_path / "run", train__epochs=5, transforms=(poison(range(22, 33)),))
    assert any("taken back to those of step 19" in note for note in notes(run))
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    assert (checkpoint.state["rollbacks"], checkpoint.state["skipped_steps"]) == (1, 11)
    assert json.loads(run.read_evaluation("test"))["accuracy"] > 0.5


def test_a_run_that_breaks_again_and_again_stops_with_the_images_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"images \d+") as stopped:
        train(tmp_path / "run", train__epochs=5, transforms=(poison(range(20, 99)),))
    assert stopped.value.exit_code == 6
    assert all(bool(torch.isfinite(t).all()) for t in weights(Run.open(tmp_path / "run")).values())


@pytest.mark.parametrize("where", ["weight", "statistics"])
def test_a_broken_weight_is_never_written_and_the_checkpoint_before_it_is_taken(
    where: str, tmp_path: Path
) -> None:
    models: list[nn.Module] = []

    class Tiny(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(64)
            self.head = nn.Linear(64, num_classes)
            models.append(self)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(images.flatten(1)))
            return logits

    def break_it(what: object) -> None:
        if isinstance(what, Progress) and (what.step, what.phase) == (37, "train"):
            name = "head.weight" if where == "weight" else "norm.running_mean"
            with torch.no_grad():
                models[0].state_dict()[name].view(-1)[3] = torch.nan

    settings = {**SETTINGS, "train.ema_decay": 0, "train.epochs": 4}
    del settings["model.name"]
    run = vidi.train("digits", settings=settings, out=tmp_path / "run", model=Tiny, show=break_it)
    assert any("taken back to those of step 19" in note for note in notes(run))
    assert all(bool(torch.isfinite(t).all()) for t in weights(run).values())
    evaluation = json.loads(run.read_evaluation("test"))
    assert evaluation["accuracy"] > 0.5


def built(**settings: object) -> tuple[Plan, Job, State]:
    """The parts of a run on digits."""
    config = Config().with_settings({**SETTINGS, **settings})
    prepared = prepare("digits", config, Extensions(), say=lambda _: None, started_at=0.0)
    plan = prepared.plan
    job = build_job(plan, config, prepared.dataset, prepared.store, Extensions())
    return plan, job, build_state(plan, prepared.model)


def test_a_broken_average_begins_anew_from_the_model(tmp_path: Path) -> None:
    _, _, state = built(**{"train.ema_decay": 0.9})
    assert state.average is not None
    state.average.update(state.model)
    with torch.no_grad():
        next(state.average.model.parameters()).fill_(torch.nan)
    run = Run.create(tmp_path / "run", texts={"config": ""})
    with run.lock(), Saver(run, every_s=0.0) as saver:
        saver.save(state, wait=True)
    assert any("begins anew" in note for note in state.notes)
    assert all(bool(torch.isfinite(t).all()) for t in weights(run).values())
    averaged = state.average.model.state_dict()
    assert all(torch.equal(averaged[k], v) for k, v in state.model.state_dict().items())


def test_float16_that_cannot_hold_the_gradients_ends_in_words(tmp_path: Path) -> None:
    plan, job, state = built()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    run = Run.create(tmp_path / "run", texts={"config": ""})
    with run.lock(), pytest.raises(TrainingError, match="fell below 1") as stopped:
        list(loop(plan, job, state, run))
    assert "bfloat16" in stopped.value.fix


def test_an_operation_without_a_deterministic_form_is_named(tmp_path: Path) -> None:
    def transform(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del batch, rng, done
        raise RuntimeError("pool_backward_cuda does not have a deterministic implementation, but")

    with pytest.raises(TrainingError, match="pool_backward_cuda"):
        train(tmp_path / "run", transforms=(transform,))


def test_constant_images_give_numbers(tmp_path: Path) -> None:
    data = tmp_path / "flat"
    from PIL import Image  # noqa: PLC0415

    # Split by their owner: images that are all the same would stay on one side of a cut.
    for split, label in itertools.product(("train", "validation", "test"), "ab"):
        (data / split / label).mkdir(parents=True)
        for number in range(20):
            flat = Image.fromarray(np.full((12, 12, 3), 7, np.uint8))
            flat.save(data / split / label / f"{number}.png")
    run = vidi.train(
        data,
        settings={"train.epochs": 1, "machine.threads": 1, "train.batch_size": 16},
        out=tmp_path / "run",
    )
    assert np.isfinite(json.loads(run.read_evaluation("test"))["log_loss"])


def test_a_network_of_one_size_cannot_grow(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot take images of 8 px"):
        train(tmp_path / "run", data__image_px=16, train__progressive_px=(8, 16))
    assert not (tmp_path / "run").exists()


def test_layers_of_a_network_that_knows_nothing_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not pretrained"):
        train(tmp_path / "run", train__freeze_stages=1)
    assert not (tmp_path / "run").exists()
