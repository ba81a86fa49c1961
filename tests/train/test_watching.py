"""What a run costs and where its time goes is kept where one can look at it."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
from pathlib import Path

import pytest

import vidi
from vidi import energy
from vidi.errors import MissingExtra, UsageError
from vidi.run import Run

SETTINGS: dict[str, object] = {
    "train.epochs": 1,
    "model.name": "mlp",
    "train.batch_size": 64,
    "machine.threads": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("watched") / "run"
    return vidi.train("digits", settings=SETTINGS, out=out, profile=True)


def test_a_profile_is_a_trace_that_perfetto_opens(run: Run) -> None:
    trace = json.loads(gzip.decompress(run.profile_path.read_bytes()))
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any("aten::" in name for name in names)
    assert any("ProfilerStep" in name for name in names)


def test_the_peak_of_memory_and_the_waiting_are_kept(run: Run) -> None:
    lines = run.timing.read()
    (costs,) = [line for line in lines if line.get("kind") == "costs"]
    assert costs["peak_memory_bytes"] > 50_000_000
    steps = [line for line in lines if "step" in line]
    assert steps
    assert all(0.0 <= line["wait_fraction"] <= 1.0 for line in steps)


def test_energy_is_a_counter_that_rises_or_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "intel-rapl:0"
    part = tmp_path / "intel-rapl:0:0"
    for folder, value in ((package, "5000000"), (part, "1000000")):
        folder.mkdir()
        (folder / "energy_uj").write_text(value)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(energy, "_gpus", lambda: None)
    # A part of the package is not counted twice.
    assert energy.joules() == 5.0
    monkeypatch.setattr(energy, "RAPL", tmp_path / "nowhere")
    assert energy.joules() is None


def test_events_for_tensorboard_or_what_to_install(run: Run, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(MissingExtra, match="not installed") as missing:
            vidi.tensorboard(run, tmp_path / "events")
        assert "vidi[tensorboard]" in missing.value.fix
        return
    folder = vidi.tensorboard(run, tmp_path / "events")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "validation/accuracy"} <= set(tags["scalars"])
    written = [line["loss"] for line in run.metrics.read() if line["kind"] == "train"]
    read = [event.value for event in events.Scalars("train/loss")]
    assert read == pytest.approx(written)
    assert any(tag.startswith("mistakes/") for tag in tags["images"])
    with pytest.raises(UsageError, match="not empty"):
        vidi.tensorboard(run, folder)
