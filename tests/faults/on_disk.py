"""A program that saves checkpoints on the disk at argv[1] until that fails, and says what is left.

argv[2]: "save" saves once; "fill" saves larger and larger ones until three failed; "files" first
makes files until the disk takes no more; "read-only" makes the disk so, and looks what still works.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vidi.errors import StorageError
from vidi.run import Run


def main(disk: Path, what: str) -> dict[str, object]:
    path = disk / "run"
    run = Run.open(path) if Run.exists(path) else Run.create(path, texts={"config": "seed = 0\n"})
    errors: list[str] = []
    with run.lock():
        if not run.checkpoint_steps():
            run.save_checkpoint(10, {"model.safetensors": b"w" * 400_000}, {})
        if what == "files":
            use_all_files(disk / "many")
        num_bytes = 400_000
        for step in range(20, 120, 10):
            if what == "read-only":
                break
            if what == "fill":
                num_bytes *= 2
            try:
                run.save_checkpoint(step, {"model.safetensors": b"w" * num_bytes}, {})
            except StorageError as error:
                errors.append(str(error))
            if what == "save" or len(errors) == 3:
                break
    if what == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            with Run.open(path).lock():
                raise AssertionError("a read-only disk was locked")
        except StorageError as error:
            errors.append(str(error))
    newest, damaged = Run.open(path).newest_checkpoint()
    assert newest is not None
    return {
        "errors": errors,
        "newest": newest.step,
        "bytes": len(newest.read("model.safetensors")),
        "damaged": damaged,
        "entries": sorted(entry.name for entry in (path / "checkpoints").iterdir()),
    }


def use_all_files(folder: Path) -> None:
    folder.mkdir()
    try:
        for number in range(100_000):
            (folder / str(number)).touch()
    except OSError:
        # Room for the folder of a checkpoint, not for the files in it.
        (folder / "0").unlink()
        (folder / "1").unlink()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
