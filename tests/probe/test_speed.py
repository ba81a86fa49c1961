"""The probe measures the real step, within its time, and leaves everything as it was."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vidi import optim, probe
from vidi.batch import Batch
from vidi.facts import Machine, Measurements, ModelFacts
from vidi.loss import Loss
from vidi.step import StepSettings

SETTINGS = StepSettings(
    precision="float32", loss=Loss(), micro_batch_size=16, clip_norm=None, seed=0
)


class Net(nn.Module):
    """A network that a test can make slow, wrong or broken in a certain way of computing it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 64, 4)
        self.slow_s = 0.0
        self.slow_lowered_s = 0.0
        self.off_when_lowered = 0.0
        self.broken_when_lowered = False

    def forward(self, images: Tensor) -> Tensor:
        lowered = torch.is_autocast_enabled("cpu")
        time.sleep(self.slow_s + (self.slow_lowered_s if lowered else 0.0))
        if lowered and self.broken_when_lowered:
            raise RuntimeError("no such kernel")
        logits: Tensor = self.head(self.norm(images).flatten(1))
        return logits * (1.0 + (self.off_when_lowered if lowered else 0.0))


def batches(count: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(16, 3, 8, 8, generator=generator),
            torch.randint(0, 4, (16,), generator=generator),
            torch.arange(16),
        )
        for _ in range(count)
    ]


def machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "platform": "Linux", "processor": "p", "physical_cores": 2, "usable_cores": 2,
        "memory_bytes": 1 << 33, "cpu_bfloat16": True, "python": "3.11", "torch": "2.13",
    }  # fmt: skip
    return Machine.model_validate({**values, **changes})


OPTIONS = probe.Space(
    precisions=("float32", "bfloat16"),
    channels_last=(True,),
    micro_batch_sizes=(16, 8),
    threads=(1,),
    compile=(False,),
    keep_memory=(True,),
)


def measured(model: Net, *, limit_s: float = 5.0, options: probe.Space = OPTIONS) -> Measurements:
    return probe.measure(
        model,
        lambda network: optim.make("sgd", network, learning_rate=0.01),
        batches(),
        SETTINGS,
        options,
        limit_s=limit_s,
    )


def test_every_candidate_is_in_the_table_with_its_rate() -> None:
    model = Net()
    found = measured(model)
    assert {(step.precision, step.micro_batch_size) for step in found.steps} >= {
        ("float32", 16), ("bfloat16", 16),
    }  # fmt: skip
    assert all(step.images_per_second > 0 for step in found.steps if not step.rejected)
    assert found.evaluation_images_per_second
    assert found.evaluation_images_per_second > 0


def test_the_model_and_the_threads_are_as_before() -> None:
    model = Net()
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    measured(model)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_way_whose_loss_is_off_is_rejected_with_the_reason() -> None:
    model = Net()
    model.off_when_lowered = 3.0
    steps = measured(model).steps
    lowered = [step for step in steps if step.precision == "bfloat16"]
    assert all("off float32's" in step.rejected for step in lowered)
    assert not steps[0].rejected


def test_a_way_that_fails_is_rejected_and_the_others_go_on() -> None:
    model = Net()
    model.broken_when_lowered = True
    steps = measured(model).steps
    assert [step.rejected for step in steps if step.precision == "bfloat16"] == [
        "failed: RuntimeError"
    ]
    assert any(step.micro_batch_size == 8 for step in steps)


def test_a_hopeless_way_is_given_up_early() -> None:
    model = Net()
    model.slow_s, model.slow_lowered_s = 0.005, 0.3
    started_at = time.perf_counter()
    measured(model, limit_s=60.0)
    # Two steps and the first one, not three warm-up steps and a second of timing.
    assert time.perf_counter() - started_at < 5.0


def test_the_time_limit_holds_from_step_to_step() -> None:
    model = Net()
    model.slow_s = 0.2
    started_at = time.perf_counter()
    found = measured(model, limit_s=1.0)
    # A second, two more steps, and the forward pass, on a machine that does other things too.
    assert time.perf_counter() - started_at < 4.0
    assert found.steps[0].images_per_second > 0


@pytest.mark.parametrize(
    ("device", "changes", "limit_s", "precisions", "compiles"),
    [
        ("cpu", {}, 20.0, ("float32", "bfloat16"), False),
        ("cpu", {"cpu_bfloat16": False}, 20.0, ("float32",), False),
        ("cpu", {"compiler": True}, 90.0, ("float32", "bfloat16"), True),
        ("cpu", {"compiler": True}, 20.0, ("float32", "bfloat16"), False),
        ("cuda", {}, 90.0, ("float32", "tf32", "float16"), True),
    ],
)
def test_what_is_tried_follows_the_machine_and_the_time(
    device: str, changes: dict[str, object], limit_s: float, precisions: tuple[str, ...],
    compiles: bool,
) -> None:  # fmt: skip
    options = probe.space(device, machine(**changes), batch_size=16, threads=2, limit_s=limit_s)
    assert options.precisions == precisions
    assert (True in options.compile) is compiles
    assert options.micro_batch_sizes == (16, 8, 4)


def test_a_measurement_is_kept_and_a_damaged_one_is_measured_again(tmp_path: Path) -> None:
    found = measured(Net(), limit_s=0.2)
    probe.keep(tmp_path, "k" * 32, found)
    assert probe.recalled(tmp_path, "k" * 32) == found
    (path,) = (tmp_path / "probe").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert probe.recalled(tmp_path, "k" * 32) is None
    assert probe.recalled(tmp_path, "j" * 32) is None


def test_what_is_kept_is_named_by_machine_model_and_shape() -> None:
    from vidi.config import Config  # noqa: PLC0415
    from vidi.facts import DatasetFacts, Facts  # noqa: PLC0415
    from vidi.plan import make  # noqa: PLC0415

    dataset = DatasetFacts(
        name="d", fingerprint="f", classes=("a", "b"), counts={"train": (50, 50)},
        height_px=(8, 8, 8), width_px=(8, 8, 8), grey=True, split_rule="folders",
    )  # fmt: skip
    model = ModelFacts(name="mlp", parameters=9, multiply_adds=9)

    def key(batch_size: int = 16, **changes: object) -> str:
        facts = Facts(dataset=dataset, machine=machine(**changes), model=model)
        plan = make(Config().with_settings({"train.batch_size": batch_size}), facts)
        return probe.key_of(facts.machine, model, plan, OPTIONS)

    assert key() == key()
    assert len({key(), key(32), key(torch="2.14"), key(processor="q")}) == 4
