"""Claims about the code as a whole that would rot if nothing held them."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import vidi
from vidi.cli import app

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "vidi"

# The rows of ARCHITECTURE.md, lowest first. A module imports only from rows below its own.
ROWS = (
    ("errors", "signals", "words", "native"),
    (
        "config",
        "facts",
        "schedule",
        "image",
        "metrics",
        "storage",
        "augment_settings",
        "malloc",
        "cores",
        "data_source",
        "interpreter",
    ),
    ("plan", "label_errors", "space"),
    ("run", "zoo", "batch", "bundle", "finite", "shards", "energy", "download", "winograd"),
    ("weights", "loss", "comparing", "study", "augment"),
    ("data", "model", "optim", "step", "memory", "import_weights", "effects"),
    ("probe", "restore", "own_data"),
    ("evaluate", "predictor", "doctor", "suspects"),
    ("export", "report", "testing", "events", "predict", "explain"),
    ("train",),
    ("tune", "serve", "commands", "launch"),
    ("show",),
    ("cli",),
    ("__main__",),
)
ROW_OF = {name: number for number, names in enumerate(ROWS) for name in names}
# Inside row 1 these two are the common ground of the others.
COMMON = {"facts", "augment_settings", "storage"}


def top_modules() -> list[Path]:
    return [path for path in sorted(SOURCE.iterdir()) if path.suffix == ".py" or path.is_dir()]


def imports_of(path: Path) -> set[str]:
    """The vidi modules, by their first name, that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vidi":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vidi."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("vidi.")]
            found |= {name.split(".")[1] for name in names}
    return found


def files_of(module: Path) -> list[Path]:
    return [module] if module.suffix == ".py" else sorted(module.rglob("*.py"))


def test_every_module_has_a_row() -> None:
    names = {path.stem for path in top_modules()} - {"__init__", "__pycache__", "py"}
    assert names <= ROW_OF.keys()


@pytest.mark.parametrize(
    "module", [p for p in top_modules() if p.stem in ROW_OF], ids=lambda p: p.stem
)
def test_imports_point_down(module: Path) -> None:
    name = module.stem
    for path in files_of(module):
        for imported in imports_of(path) & ROW_OF.keys() - {name}:
            below = ROW_OF[imported] < ROW_OF[name]
            common = ROW_OF[imported] == ROW_OF[name] == 1 and imported in COMMON
            assert below or common, f"{path.relative_to(ROOT)} imports vidi.{imported}"


# Taken by the functions of the same name: `from vidi import train` is the function.
COMMANDS = {"train", "plan", "evaluate", "report", "export", "serve", "suspects", "fit", "tune"}


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_no_module_takes_a_command_for_a_module(path: Path) -> None:
    if path.parent.name == "cli" or path.name == "__init__.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vidi":
            assert not {alias.name for alias in node.names} & COMMANDS


PUBLIC = {
    "tune": "(data: 'str | Path', config: 'Config | None' = None, *, settings: 'Mapping[str, "
    "object] | None' = None, space: 'AnySpace | None' = None, minutes: 'float | None' = "
    "None, trials: 'int | None' = None, sampler: 'Sampler' = 'tpe', promotion: 'Promotion' "
    "= 'asha', fidelity: 'Fidelity' = 'steps', patience: 'int' = 0, retrain: 'bool' = False, "
    "seed: 'int' = 0, workers: 'int' = 1, ray: 'str | None' "
    "= None, storage_url: 'str | None' = None, timeout_s: 'float' = 300.0, out: 'str | "
    "Path | None' = None, show: 'Callable[[Any], None] | None' = None, started_at: 'float "
    "| None' = None) -> 'Study'",
    "ablate": "(data: 'str | Path', config: 'Config | None' = None, *, "
    "settings: 'Mapping[str, object] | None' = None, factors: 'Sequence[str]' = (), "
    "seeds: 'int' = 3, minutes: 'float | None' = None, workers: 'int' = 1, "
    "out: 'str | Path | None' = None, show: 'Show | None' = None, "
    "started_at: 'float | None' = None) -> 'Study'",
    "cache": "(*, prune: 'bool' = False, unused_days: 'float' = 30.0, "
    "max_gb: 'float | None' = None, cache_dir: 'str | Path | None' = None) "
    "-> 'tuple[list[CachedStore], list[CachedStore]]'",
    "contact_sheet": "(data: 'str | Path', config: 'Config | None' = None, *, "
    "settings: 'Mapping[str, object] | None' = None, out: 'str | Path | None' = None, "
    "transforms: 'Sequence[Transform]' = (), num_images: 'int' = 8, columns: 'int' = 8, "
    "done: 'float' = 1.0, show: 'Callable[[Any], None] | None' = None) -> 'tuple[Path, Plan]'",
    "audit": "(data: 'str | Path', config: 'Config | None' = None, *, "
    "settings: 'Mapping[str, object] | None' = None, out: 'str | Path | None' = None, "
    "progress: 'Callable[[int, int], None] | None' = None) -> 'Audit'",
    "compare": "(first: 'str | Path | Run', *others: 'str | Path | Run', "
    "split: 'str | None' = None) -> 'tuple[Comparison, ...]'",
    "suspects": "(*runs: 'str | Path | Run', data: 'str | Path | None' = None) "
    "-> 'tuple[Doubt, ...]'",
    "doctor": "() -> 'Findings'",
    "evaluate": "(run: 'str | Path | Run', data: 'str | Path | None' = None, *, "
    "split: 'str | None' = None, model: 'Callable[..., nn.Module] | None' = None, "
    "tta: 'bool' = False, show: 'Callable[[Any], None] | None' = None) -> 'Evaluation'",
    "fit": "(data: 'str | Path', config: 'Config | None' = None, *, minutes: 'float', "
    "settings: 'Mapping[str, object] | None' = None, out: 'str | Path | None' = None, "
    "to: 'str' = 'best', retrain: 'bool' = False, model: 'Callable[..., Any] | None' = None, "
    "show: 'Show | None' = None, started_at: 'float | None' = None) -> 'Study'",
    "find_learning_rate": "(data: 'str | Path', config: 'Config | None' = None, *, "
    "settings: 'Mapping[str, object] | None' = None, out: 'str | Path' = 'learning-rate.svg', "
    "show: 'Callable[[Any], None] | None' = None) -> 'RangeTest'",
    "tensorboard": "(run: 'str | Path | Run', out: 'str | Path') -> 'Path'",
    "export": "(run: 'str | Path | Run', *, to: 'str' = 'onnx', "
    "data: 'str | Path | None' = None, out: 'str | Path | None' = None, "
    "model: 'Callable[..., nn.Module] | None' = None, "
    "show: 'Callable[[Any], None] | None' = None) -> 'Bundle'",
    "load": "(path: 'str | Path', *, model: 'Callable[..., nn.Module] | None' = None, "
    "tta: 'bool' = False, calibrated: 'bool' = False, abstain_below: 'float' = 0.0, "
    "trusted: 'bool' = False) "
    "-> 'Predictor'",
    "models": "(filter: 'str' = '', *, timm: 'bool' = False) -> 'tuple[Listing, ...]'",
    "plan": "(data: 'str | Path', config: 'Config | None' = None, *, "
    "settings: 'Mapping[str, object] | None' = None, "
    "show: 'Callable[[Any], None] | None' = None) -> 'Prepared'",
    "report": "(run: 'str | Path | Run | Study', *, explain: 'bool' = False, "
    "data: 'str | Path | None' = None, model: 'Callable[..., nn.Module] | None' = None, "
    "show: 'Callable[[Any], None] | None' = None) -> 'Path'",
    "serve": "(model: 'str | Path | Predictor', place: 'Place | None' = None, "
    "limits: 'Limits | None' = None, *, access_log: 'bool' = False, "
    "say: 'Callable[[str], None] | None' = None, "
    "on_ready: 'Callable[[App, str], None] | None' = None) -> 'None'",
    "train": "(data: 'str | Path', config: 'Config | None' = None, *, "
    "settings: 'Mapping[str, object] | None' = None, out: 'str | Path | None' = None, "
    "model: 'Callable[..., nn.Module] | None' = None, transforms: 'Sequence[Transform]' = (), "
    "schedule: 'Callable[[float], float] | None' = None, show: 'Show | None' = None, "
    "force_resume: 'bool' = False, profile: 'bool' = False, started_at: 'float | None' = None) "
    "-> 'Run'",
}
CLASSES = {
    "Batch",
    "Bundle",
    "Config",
    "Evaluation",
    "Prediction",
    "Predictions",
    "Predictor",
    "Run",
    "Study",
    "VidiError",
}


def test_the_public_names_are_these() -> None:
    assert set(vidi.__all__) == PUBLIC.keys() | CLASSES | {"__version__"}
    assert all(hasattr(vidi, name) for name in vidi.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_public_signatures_are_these(name: str) -> None:
    assert str(inspect.signature(getattr(vidi, name))) == PUBLIC[name]


def test_a_command_stays_a_function_after_its_module_was_imported() -> None:
    code = "import vidi.train, vidi.plan, vidi; print(callable(vidi.train), callable(vidi.plan))"
    assert fresh(code) == "True True"


OPTIONS = {
    "tune": {
        "--minutes",
        "--trials",
        "--space",
        "--sampler",
        "--promotion",
        "--fidelity",
        "--patience",
        "--retrain",
        "--seed",
        "--workers",
        "--ray",
        "--storage",
        "--timeout",
        "--out",
        "--model",
        "--epochs",
        "--config",
        "--set",
        "--json",
    },
    "fit": {"--minutes", "--out", "--to", "--retrain", "--model", "--config", "--set", "--json"},
    "ablate": {
        "--factors",
        "--seeds",
        "--workers",
        "--minutes",
        "--epochs",
        "--model",
        "--out",
        "--config",
        "--set",
        "--json",
    },
    "augment": {"--out", "--images", "--columns", "--done", "--config", "--set"},
    "audit": {"--out", "--strict", "--config", "--set", "--json"},
    "cache": {"--prune", "--days", "--max-gb", "--json"},
    "compare": {"--split", "--out", "--json"},
    "show": {"--json"},
    "suspects": {"--csv", "--data", "--json"},
    "doctor": {"--json"},
    "evaluate": {"--split", "--model", "--tta", "--json"},
    "models": {"--timm", "--json"},
    "plan": {
        "--model",
        "--epochs",
        "--minutes",
        "--config",
        "--set",
        "--lr-find",
        "--picture",
        "--json",
    },
    "export": {"--to", "--out", "--data", "--model", "--json"},
    "predict": {
        "--out",
        "--format",
        "--model",
        "--top",
        "--probabilities",
        "--embeddings",
        "--abstain-below",
        "--precision",
        "--tta",
        "--calibrated",
        "--resume",
        "--threads",
        "--trusted",
        "--json",
    },
    "serve": {
        "--host",
        "--port",
        "--unix",
        "--allow-host",
        "--token-file",
        "--max-megabytes",
        "--abstain-below",
        "--precision",
        "--calibrated",
        "--trusted",
        "--model",
        "--access-log",
    },
    "report": {"--explain", "--data", "--model"},
    "tensorboard": {"--out"},
    "train": {
        "--out",
        "--model",
        "--epochs",
        "--minutes",
        "--config",
        "--set",
        "--force-resume",
        "--profile",
        "--nproc",
        "--max-restarts",
        "--json",
    },
}


def test_the_command_line_has_these_options() -> None:
    group = get_command(app)
    commands = typing.cast("dict[str, typing.Any]", getattr(group, "commands", {}))
    found = {
        name: {flag for parameter in command.params for flag in parameter.opts if "--" in flag}
        for name, command in commands.items()
    }
    assert found == OPTIONS
    assert isinstance(app, typer.Typer)


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import vidi",
        "import vidi.cli",
        "from vidi.plan import make",
        "from vidi.run import Run",
        "from vidi.metrics import evaluate",
        "from vidi.image import prepare",
        "from vidi import Config",
        "import vidi.report",
        "import vidi.predict",
        "import vidi.serve",
        "from vidi import load, Bundle, Predictor",
    ],
)
def test_what_needs_no_torch_imports_none(statement: str) -> None:
    assert fresh(f"import sys; {statement}; print('torch' in sys.modules)") == "False"


def test_importing_vidi_imports_nothing_heavy() -> None:
    heavy = ["numpy", "pydantic", "PIL", "scipy", "sklearn", "rich"]
    found = fresh(f"import sys; import vidi; print([m for m in {heavy} if m in sys.modules])")
    assert found == "[]"


# What would run code from data, or hide a fault. The one importer of names is config.load.
BANNED = {
    "import pickle",
    "torch.hub",
    "trust_remote_code",
    "extractall",
    "os.system",
    "shell=True",
    "mktemp(",
    "yaml.load",
    "joblib.load",
    "allow_pickle=True",
    "strict=False",
    "LOAD_TRUNCATED_IMAGES",
    "MAX_IMAGE_PIXELS = None",
    "0.0.0.0",
    "|safe",
    "eval(",
    "exec(",
    "__import__(",
    "import_module(",
    " torch.load(",
    "=torch.load(",
    "(torch.load(",
}
ALLOWED = {
    ("config.py", "import_module("),
    ("__init__.py", "import_module("),
    ("weights.py", " torch.load("),
    # The names of what it forbids.
    ("import_weights.py", "os.system"),
}


@pytest.mark.parametrize("word", sorted(BANNED))
def test_what_could_run_code_from_data_is_not_used(word: str) -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if (path.name, word) in ALLOWED:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = line.split("#")[0]
            called = word in code and not (word in ("eval(", "exec(") and f".{word}" in code)
            mentioned = '"""' in code or "``" in code
            assert not called or mentioned, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_no_source_says_todo() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        assert "TODO" not in path.read_text(), path
