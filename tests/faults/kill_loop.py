"""Kills a process that saves checkpoints in a loop, again and again, at random moments.

    python tests/faults/kill_loop.py FOLDER [KILLS] [SEED]

Prints one JSON object; ends with an AssertionError at the first resume that does not hold.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from vidi.run import Run
from vidi.storage import is_leftover


def files_of(step: int) -> dict[str, bytes]:
    return {
        "model.safetensors": f"weights {step} ".encode() * 20_000,
        "optimizer.safetensors": f"momentum {step} ".encode() * 30_000,
    }


def train(path: Path, report: int) -> None:
    """Saves for ever; writes the number of each step that is safe into the pipe."""
    run = Run.open(path)
    with run.lock():
        checkpoint, damaged = run.newest_checkpoint()
        assert damaged == (), damaged
        run.rewind(checkpoint)
        step = 0 if checkpoint is None else checkpoint.step
        while True:
            step += 1
            run.metrics.append({"step": step, "loss": 1 / step})
            if step % 3 == 0:
                run.save_checkpoint(step, files_of(step), {"loss": 1 / step}, {step // 2 // 3 * 3})
                os.write(report, step.to_bytes(4, "little"))


def kill_once(path: Path, delay_s: float) -> int:
    """The last step that the child called safe; 0: none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            train(path, writer)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    return int.from_bytes(said[-4:], "little") if said else 0


def main(folder: Path, kills: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    path = folder / "run"
    Run.create(path, texts={"config": "seed = 0\n"})
    last = inside_a_save = 0
    for _ in range(kills):
        last = kill_once(path, rng.uniform(0.0, 0.15)) or last
        inside_a_save += any(is_leftover(entry.name) for entry in (path / "checkpoints").iterdir())
        # Looking needs no lock, and changes nothing.
        checkpoint, damaged = Run.open(path).newest_checkpoint()
        assert damaged == (), damaged
        if checkpoint is None:
            assert last == 0, f"step {last} was called safe, and is gone"
            continue
        step = checkpoint.step
        assert last <= step <= last + 3, f"resumes at {step}, but {last} was called safe"
        assert {name: checkpoint.read(name) for name in checkpoint.names} == files_of(step)
        assert checkpoint.state == {"loss": 1 / step}
        logged = [record["step"] for record in Run.open(path).metrics.read()]
        assert logged[:step] == list(range(1, step + 1)), logged
        last = step
    return {"kills": kills, "inside_a_save": inside_a_save, "step": last}


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "40", "0"] if len(sys.argv) == 2 else [*sys.argv[1:], "0"]
    found = main(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    sys.stdout.write(json.dumps(found) + "\n")
