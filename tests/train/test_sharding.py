"""A model divided between processes learns what a whole one does, and leaves the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.nn import functional

import vidi
from vidi import model, shards
from vidi.config import Config
from vidi.data import open_dataset
from vidi.errors import ConfigError, Interrupted, OutOfMemory
from vidi.own_data import decoded, plan_of
from vidi.run import Run
from vidi.train import Extensions, Progress, build_job, build_model, build_state, loop
from vidi.train.sharding import shard_state

SETTINGS: dict[str, object] = {
    "model.name": "mlp",
    "model.dropout": 0.0,
    "train.epochs": 3,
    "train.batch_size": 62,
    "train.optimizer": "adamw",
    "train.label_smoothing": 0,
    "train.ema_decay": 0.9,
    "train.clip_norm": 0.5,
    "train.accumulate": 2,
    "machine.threads": 1,
}

SCRIPT = f"""
import os, signal, sys
import vidi
from vidi.errors import Interrupted

def show(moment):
    if not isinstance(moment, str) and moment.phase == "train" and moment.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)

try:
    vidi.train("digits", out=sys.argv[1], settings={{**{SETTINGS!r}, "machine.sharding": "full"}},
               show=show)
except Interrupted as error:
    print(error, file=sys.stderr)
"""


def by_two(script: str, *arguments: object, folder: Path) -> str:
    """Run a script in two processes."""
    (folder / "script.py").write_text(script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launcher, str(folder / "script.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stopped_at(step: int, out: Path) -> None:
    def show(moment: str | Progress) -> None:
        if isinstance(moment, Progress) and moment.phase == "train" and moment.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        vidi.train("digits", out=out, settings=SETTINGS, show=show)


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics.read() if line["kind"] == "train"]


def last_notes(run: Run) -> str:
    checkpoint, damaged = run.newest_checkpoint()
    assert checkpoint is not None
    assert not damaged
    return "; ".join(checkpoint.state["notes"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return vidi.train("digits", out=tmp_path_factory.mktemp("alone") / "run", settings=SETTINGS)


def test_what_two_have_begun_in_parts_one_finishes_whole(alone: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    by_two(SCRIPT, out, 25, folder=tmp_path)
    begun = Run.open(out)
    # They agree every ten steps.
    assert begun.checkpoint_steps()[-1] == 30
    assert losses(begun) == pytest.approx(losses(alone)[:30], rel=1e-5)
    settings = {**SETTINGS, "machine.sharding": "full"}
    run = vidi.train("digits", out=out, settings=settings)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert "continued with the model whole in each process" in last_notes(run)
    assert files_of(run) == files_of(alone)


def test_what_one_has_begun_whole_two_finish_in_parts(alone: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped_at(30, out)
    by_two(SCRIPT, out, 0, folder=tmp_path)
    run = Run.open(out)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert "continued with the model divided between the processes" in last_notes(run)
    assert files_of(run) == files_of(alone)
    both = [
        [(line["step"], line["accuracy"]) for line in one.metrics.read() if "log_loss" in line]
        for one in (run, alone)
    ]
    assert both[0] == both[1]
    assert vidi.evaluate(run).n_evaluated == 359


def files_of(run: Run) -> list[tuple[str, int]]:
    """What the newest checkpoint holds: names and sizes."""
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None
    return sorted(
        (name, len(checkpoint.read(name))) for name in checkpoint.names if "json" not in name
    )


FAMILIES = ["lenet5", "small_cnn", "resnet18", "efficientnet_lite0"]

EVERY_FAMILY = """
import copy, os, sys
import torch, torch.distributed as dist
from torch import nn
from vidi import model, optim, shards
from vidi.batch import Batch
from vidi.loss import Loss
from vidi.model import own_parts
from vidi.step import StepSettings, train_step

dist.init_process_group("gloo")
rank = dist.get_rank()
shared = StepSettings(precision="float32", loss=Loss(), micro_batch_size=2, clip_norm=0.5, seed=0,
                      sam_rho=0.05, world_size=2, batch_size=8)
divided = StepSettings(precision="float32", loss=Loss(), micro_batch_size=2, clip_norm=0.5, seed=0,
                       sam_rho=0.05, world_size=2, batch_size=8, sharded=True)
for name in sys.argv[1:]:
    px = 64
    torch.manual_seed(0)
    whole = model.build(name, num_classes=5, image_px=px, channels=3, mean=(0.5,) * 3,
                        std=(0.25,) * 3)
    model.checkpoint_activations(whole)
    parts = copy.deepcopy(whole)
    torch.manual_seed(1 + rank)
    images = Batch(torch.rand(4, 3, px, px) * 255, torch.randint(0, 5, (4,)), torch.arange(4))
    networks = nn.parallel.DistributedDataParallel(whole, broadcast_buffers=False), parts
    shards.shard(parts, [part for _, part in own_parts(parts)], torch.device("cpu"))
    for network, settings in zip(networks, (shared, divided)):
        network.train()
        optimizer = optim.make("sgd", network, learning_rate=0.01, fused=False)
        for step in range(2):
            train_step(network, optimizer, images, settings, step)
    found = shards.whole_on_first(parts.state_dict())
    if rank == 0:
        for key, value in whole.state_dict().items():
            try:
                torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
            except AssertionError as error:
                raise AssertionError(f"{name} {key}") from error
        print("same", name, flush=True)
dist.destroy_process_group()
# gloo's threads outlive the group and may end a process with SIGABRT that takes Python down.
os._exit(0)
"""


@pytest.mark.slow
def test_networks_of_each_family_are_updated_as_if_they_were_whole(tmp_path: Path) -> None:
    printed = by_two(EVERY_FAMILY, *FAMILIES, folder=tmp_path)
    assert [name for name in FAMILIES if f"same {name}\n" in printed] == FAMILIES


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this one process: everything is divided, into one part."""
    store = HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_what_is_put_into_parts_comes_back_whole() -> None:
    network = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    shards.shard(network, [network[0]], torch.device("cpu"))
    values = {name: torch.rand(t.shape) for name, t in network.state_dict().items() if t.ndim}
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim:
                shards.put(tensor, values[name])
    back = shards.whole_on_first(network.state_dict())
    assert all(torch.equal(back[name], values[name]) for name in values)
    assert shards.is_sharded(network)
    with shards.gathered(network), torch.inference_mode():
        network.eval()(torch.rand(2, 5))
    assert not shards.is_sharded(nn.Linear(2, 2))


class Reaches(nn.Module):
    """Reads the weights of a layer past it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        seen = functional.linear(images.flatten(1), self.body.weight)
        logits: Tensor = self.head(seen)
        return logits


@pytest.mark.usefixtures("group")
def test_a_network_that_cannot_be_divided_is_refused_in_words(alone: Run) -> None:
    plan = plan_of(alone)
    classifier = model.build(
        Reaches, num_classes=10, image_px=8, channels=1, mean=(0.5,), std=(0.25,)
    )
    with pytest.raises(ConfigError, match="cannot divide 'mlp'"):
        shard_state(build_state(plan, classifier), plan)


@pytest.mark.usefixtures("group")
def test_out_of_memory_ends_a_divided_run_and_says_what_helps(alone: Run) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    plan = plan_of(alone)
    state = build_state(plan, build_model(plan))
    shard_state(state, plan)
    state.model.register_forward_pre_hook(full)
    dataset = open_dataset("digits")
    dataset, store = decoded(dataset, plan, Config(), say=lambda _: None)
    job = build_job(plan, Config(), dataset, store, Extensions())
    with pytest.raises(OutOfMemory, match="31 images at once"):
        next(loop(plan, job, state, None))
