"""Your own loop over vidi's parts: prepare, loader, augmentation, step, checkpoint; no `train`.

For what no setting can say. Here: the loss of every class is printed as it falls.

    python examples/own_loop.py [STEPS]
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch

from vidi import optim
from vidi.augment import ImageRandom
from vidi.config import Config
from vidi.run import Run
from vidi.step import StepSettings, train_step
from vidi.train import Extensions, build_job, build_state, prepare, save


def main() -> None:
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    config = Config().with_settings({"model.name": "mlp"})
    prepared = prepare("digits", config, Extensions(), say=print, started_at=time.monotonic())
    plan = prepared.plan.model_copy(update={"horizon_steps": num_steps, "last_step": num_steps})
    job = build_job(plan, config, prepared.dataset, prepared.store, Extensions())
    state = build_state(plan, prepared.model)
    settings = StepSettings.of(plan)
    out = Path(tempfile.mkdtemp()) / "run"
    run = Run.create(out, texts={"config": config.to_toml(), "plan": plan.model_dump_json()})
    with run.lock():
        while state.step < num_steps:
            epoch, start = divmod(state.step, plan.steps_per_epoch)
            with contextlib.closing(job.train.batches(epoch, start)) as batches:
                for batch in batches:
                    done = state.step / num_steps
                    optim.set_learning_rate(state.optimizer, job.schedule(done))
                    varied = job.augment(batch, ImageRandom(plan.seed, epoch, batch.ids), done)
                    state.model.train()
                    train_step(state.model, state.optimizer, varied, settings, state.step)
                    state.step += 1
                    if state.step % 50 == 0:
                        losses = _loss_of_each_class(state.model, batch.images, batch.targets)
                        shown = " ".join(f"{float(loss):.2f}" for loss in losses)
                        print(f"step {state.step}: {shown}")
                    if state.step == num_steps:
                        break
        save(state, run)
    print(f"saved in {out}")


def _loss_of_each_class(
    model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of the images of each class, (K,); NaN for a class not in the batch."""
    model.eval()
    with torch.inference_mode():
        logits = model(images)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    num_classes = logits.shape[1]
    sums = torch.zeros(num_classes).index_add_(0, targets, losses)
    return sums / torch.bincount(targets, minlength=num_classes)


if __name__ == "__main__":
    main()
