"""A run's curves, settings and mistakes as TensorBoard shows them; read from the run, any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidi.config import parse
from vidi.errors import MissingExtra, UsageError
from vidi.metrics import Evaluation
from vidi.run import Run


def write_events(run: Run, folder: Path) -> Path:
    """Event files for `tensorboard --logdir`: scalars of training and validation, rates, the
    settings with the result, and the most confident mistakes as images.

    Args:
        run: finished or not; it is only read.
        folder: where the files go; it must be empty or not exist, because TensorBoard would show
            what lies there twice.

    Raises:
        MissingExtra: the package tensorboard is not installed.
        UsageError: `folder` holds something already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", fix="name a new folder with --out")
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtra(
            "events for TensorBoard need a package that is not installed",
            fix='pip install "vidi[tensorboard]"',
        ) from None
    writer: Any = SummaryWriter(str(folder))
    try:
        _scalars(run, writer)
        _settings(run, writer)
        _mistakes(run, writer)
    finally:
        writer.close()
    return folder


def _scalars(run: Run, writer: Any) -> None:
    for record in run.metrics.read():
        for name, value in record.items():
            if name not in ("kind", "step") and value is not None:
                writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
    for record in run.timing.read():
        if "step" not in record:
            continue
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(f"timing/{name}", value, record["step"])


def _settings(run: Run, writer: Any) -> None:
    asked = parse(run.text("config"), origin=str(run.config_path)).model_dump(exclude_unset=True)
    settings = {
        f"{section}.{name}": value if isinstance(value, int | float | bool | str) else str(value)
        for section, values in asked.items()
        for name, value in values.items()
        if value is not None
    }
    results = {}
    for split in run.evaluated_splits():
        evaluation = Evaluation.model_validate_json(run.read_evaluation(split))
        results[f"result/{split} accuracy"] = evaluation.accuracy
        results[f"result/{split} macro F1"] = evaluation.macro_f1
    if results:
        writer.add_hparams(settings, results, run_name=".")


def _mistakes(run: Run, writer: Any) -> None:
    checkpoint, _ = run.newest_checkpoint()
    step = 0 if checkpoint is None else checkpoint.step
    for split in run.evaluated_splits():
        if not run.pictures_path(split).exists():
            continue
        pixels = run.read_pictures(split)["pixels"]
        if len(pixels):
            writer.add_images(f"mistakes/{split}", pixels[:32], step, dataformats="NHWC")
