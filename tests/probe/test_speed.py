"""The probe measures the real step, within its time, and leaves everything as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vidi import optim, probe
from vidi.batch import Batch
from vidi.facts import Machine, Measurements, ModelFacts, Where
from vidi.loss import Loss
from vidi.step import StepSettings

SETTINGS = StepSettings(
    precision="float32", loss=Loss(), micro_batch_size=16, clip_norm=None, seed=0
)


class Clock:
    """Seconds, moved by the test; copies of a network share theirs."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: object) -> Clock:
        return self


class Net(nn.Module):
    """A network that a test can make slow, wrong or broken in a certain way of computing it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 64, 4)
        # A clock that stands still but for the cost of each forward pass.
        self.clock = Clock()
        self.cost_s = 0.001
        self.cost_lowered_s = 0.0
        self.passes = 0
        self.off_when_lowered = 0.0
        self.broken_when_lowered = False

    def forward(self, images: Tensor) -> Tensor:
        lowered = torch.is_autocast_enabled("cpu")
        self.passes += 1
        self.clock.now += self.cost_s + (self.cost_lowered_s if lowered else 0.0)
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


def measured(
    model: Net,
    *,
    limit_s: float = 5.0,
    options: probe.Space = OPTIONS,
) -> Measurements:
    """By the model's own clock: no test depends on how fast the machine is."""
    return probe.measure(
        model,
        lambda network, fused: optim.make("sgd", network, learning_rate=0.01, fused=fused),
        batches(),
        SETTINGS,
        options,
        limit_s=limit_s,
        clock=model.clock,
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


def test_a_hopeless_way_is_given_up_after_two_steps_and_the_first() -> None:
    model = Net()
    model.cost_s, model.cost_lowered_s = 0.01, 5.0
    alone = replace(OPTIONS, precisions=("float32",), micro_batch_sizes=(16,))
    both = replace(OPTIONS, micro_batch_sizes=(16,))
    before = model.clock.now
    measured(model, limit_s=600.0, options=alone)
    whole_s, before = model.clock.now - before, model.clock.now
    measured(model, limit_s=600.0, options=both)
    extra_s = model.clock.now - before - whole_s
    assert extra_s == pytest.approx(3 * 5.01, abs=0.1)


@given(
    cost_s=st.floats(0.001, 30.0),
    lowered_s=st.floats(-0.0005, 30.0),
    limit_s=st.floats(4.0, 120.0),
)
@settings(max_examples=15, deadline=None)
def test_the_probe_takes_its_time_and_two_steps_and_a_look_at_evaluation_at_most(
    cost_s: float, lowered_s: float, limit_s: float
) -> None:
    model = Net()
    model.cost_s, model.cost_lowered_s = cost_s, lowered_s
    found = measured(model, limit_s=limit_s)
    spent_s = model.clock.now - 100.0
    # A batch in halves goes through the model twice; the slowest pass of all.
    slowest_s = cost_s + max(0.0, lowered_s)
    assert spent_s <= limit_s + 2 * 2 * slowest_s + 2 * slowest_s
    assert found.probe_s == pytest.approx(spent_s)
    assert found.steps[0].images_per_second == pytest.approx(16 / cost_s, rel=0.01)


@given(planned_s=st.floats(0.0, 1e7))
def test_a_probe_is_allowed_a_twentieth_of_the_run_or_less_than_twenty_seconds(
    planned_s: float,
) -> None:
    allowed_s = probe.allowance_s(planned_s)
    assert 0 < allowed_s <= max(20.0, 0.05 * planned_s)


def test_what_came_close_is_timed_again_and_the_median_counts() -> None:
    class Drifting(Net):
        """bfloat16 is a little slower, but the machine has a bad moment when float32 is timed."""

        def forward(self, images: Tensor) -> Tensor:
            lowered = torch.is_autocast_enabled("cpu")
            early = self.clock.now < 101.0
            self.clock.now += 0.105 if lowered else (0.12 if early else 0.1)
            return Net.forward(self, images)

    options = replace(OPTIONS, micro_batch_sizes=(16,))
    found = measured(Drifting(), limit_s=100.0, options=options)
    rates = {step.precision: step.images_per_second for step in found.steps}
    assert rates["float32"] == pytest.approx(160, rel=0.01)
    assert rates["bfloat16"] == pytest.approx(16 / 0.105, rel=0.01)


def test_compiling_is_not_begun_where_it_could_not_end_in_time() -> None:
    model = Net()
    model.cost_s = 1.0
    options = replace(OPTIONS, precisions=("float32",), compile=(False, True))
    found = measured(model, limit_s=30.0, options=options)
    assert not any(step.compile for step in found.steps)


@pytest.mark.parametrize(
    ("device", "changes", "limit_s", "precisions", "compiles"),
    [
        ("cpu", {}, 20.0, ("float32", "bfloat16"), False),
        ("cpu", {"cpu_bfloat16": False}, 20.0, ("float32",), False),
        ("cpu", {"compiler": True}, 90.0, ("float32", "bfloat16"), True),
        ("cpu", {"compiler": True}, 20.0, ("float32", "bfloat16"), False),
        ("cuda", {}, 90.0, ("float32", "tf32", "float16"), True),
        ("cuda", {}, 20.0, ("float32", "tf32", "float16"), False),
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
    assert options.fused == (None, device == "cpu")
    # On a processor there is one place only.
    assert options.augment_on == (("device",) if device == "cpu" else ("device", "host"))
    assert (True in options.cuda_graphs) is (device == "cuda" and compiles)


def test_fewer_threads_are_tried_and_several_processes_record_no_graphs() -> None:
    def found(device: str, threads: int, processes: int = 1) -> probe.Space:
        return probe.space(
            device, machine(processes=processes), batch_size=8, threads=threads, limit_s=90.0
        )

    assert [found("cpu", n).threads for n in (1, 2, 16)] == [(1,), (2, 1), (16, 8, 4)]
    assert found("cuda", 16).threads == (16,)
    assert found("cuda", 16, processes=2).cuda_graphs == (False,)
    fixed = probe.space("cpu", machine(), batch_size=8, threads=2, limit_s=90.0, optimizer="muon")
    assert fixed.fused == (None,)


def test_minimal_filtering_is_tried_in_bfloat16_where_machine_and_model_have_it() -> None:
    def found(device: str = "cpu", can: bool = True, fits: bool = True) -> probe.Space:
        return probe.space(
            *(device, machine(winograd=can, compiler=True)), batch_size=8, threads=2, limit_s=90.0,
            winograd=fits,
        )  # fmt: skip

    assert found().winograd == (False, True)
    for without in (found("cuda"), found(can=False), found(fits=False)):
        assert without.winograd == (False,)
    options, first = found(), found().first
    around = [
        candidate
        for best in (first, first._replace(precision="bfloat16"))
        for turn in range(options.TURNS)
        for candidate in options.around(best, turn)
    ]
    (filtered,) = [candidate for candidate in around if candidate.winograd]
    assert filtered == first._replace(precision="bfloat16", winograd=True)
    # Going on from there, nothing is compiled.
    on = [c for turn in range(options.TURNS) for c in options.around(filtered, turn)]
    assert not any(candidate.compile and candidate.winograd for candidate in on)


def test_graphs_are_tried_with_compiling_though_that_alone_did_not_pay() -> None:
    options = probe.space("cuda", machine(), batch_size=8, threads=2, limit_s=90.0)
    tried = [c for turn in range(options.TURNS) for c in options.around(options.first, turn)]
    (graphs,) = [candidate for candidate in tried if candidate.cuda_graphs]
    assert graphs.compile
    assert {c.augment_on for c in tried} == {"device", "host"}
    # One thing at a time but for that.
    assert all(
        sum(a != b for a, b in zip(c, options.first, strict=True)) == (2 if c is graphs else 1)
        for c in tried
    )


def test_a_feed_is_asked_for_batches_varied_in_both_places_and_its_time_counts() -> None:
    model, asked = Net(), set()
    model.cost_s = 0.0

    def feed(step: int, where: Where) -> Batch:
        asked.add(where)
        model.clock.now += 0.5 if where == "host" else 0.1
        return batches()[step % 2]

    found = probe.measure(
        model,
        lambda network, fused: optim.make("sgd", network, learning_rate=0.01, fused=fused),
        batches(),
        SETTINGS,
        replace(OPTIONS, precisions=("float32",), micro_batch_sizes=(16,),
                augment_on=("device", "host")),
        limit_s=500.0,
        feed=feed,
        clock=model.clock,
    )  # fmt: skip
    assert asked == {"device", "host"}
    rates = {step.augment_on: step.images_per_second for step in found.steps}
    assert rates["device"] == pytest.approx(160)
    assert rates["host"] == pytest.approx(32)


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

    def key(batch_size: int = 16, views: str = "plain", **changes: object) -> str:
        facts = Facts(dataset=dataset, machine=machine(**changes), model=model)
        settings = {"train.batch_size": batch_size, "model.views": views}
        plan = make(Config().with_settings(settings), facts)
        return probe.key_of(facts.machine, model, plan, OPTIONS)

    assert key() == key()
    others = key(32), key(views="flip"), key(torch="2.14"), key(processor="q")
    assert len({key(), *others}) == 5
