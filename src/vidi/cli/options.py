"""What the commands share: the app, its options, and what is asked for by them.

Torch is imported only by the commands that need it, so that `vidi --help` answers at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidi import __version__, data_source

if TYPE_CHECKING:
    from vidi.config import Config

STARTED_AT = time.monotonic()


app = typer.Typer(
    name="vidi",
    help="A folder of images in, the best classifier that your time and your machine can buy out.",
    epilog="Start with: vidi train photos/   (one folder for each class inside)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one folder of images for each class (inside train, validation and test "
        "folders, if there are such), a table (.csv, .jsonl, .parquet), tar shards, IDX or CIFAR "
        "files, module:object, or a name such as digits, mnist or cifar10.",
        show_default=False,
        callback=data_source.check,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings as TOML.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, such as train.learning_rate=0.1; may be given again.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="A network, or module:function.", show_default=False
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option("--epochs", metavar="N", help="Passes over the images.", show_default=False),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", metavar="M", help="Wall-clock time for everything.", show_default=False
    ),
]
StudyFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Where the study is kept; a stopped one there is continued.  "
        "[default: a new one in studies/]",
        show_default=False,
    ),
]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FUNCTION",
        help="Your own network, if the run trained one.",
        show_default=False,
    ),
]
DataNow = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DATA", help="Where the run's data are now.", show_default=False
    ),
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average over several views of each image: mirror images where training used them, "
        "corners where images are stored with a margin.",
    ),
]
AbstainBelow = Annotated[
    float | None,
    typer.Option(
        "--abstain-below",
        metavar="P",
        help="Abstain where the probability is lower.",
        show_default=False,
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="Abstain below the probability from which answers were right this often.",
        show_default=False,
    ),
]
Calibrated = Annotated[
    bool,
    typer.Option(
        "--calibrated", help="Probabilities divided by the temperature found on validation images."
    ),
]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Load a file of torch.export, which can run code.")
]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=1, help="Trials at the same time.")
]
Retrain = Annotated[
    bool,
    typer.Option(
        "--retrain",
        help="In the end, train the best once more on its validation images too, and judge that.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def answer_of(path: Path) -> Path:
    """The run that is the answer of a study; what is no study as it is."""
    if not (path / "study.json").exists():
        return path
    from vidi.errors import UsageError
    from vidi.study import Study

    study = Study.open(path)
    if not study.final_path.exists():
        fix = "give the same command again to continue it, or name a run in its trials/"
        if study.kind == "ablate":
            fix = f"an ablation trains no answer; see {study.report_path}"
        raise UsageError(f"{path} is a study without an answer yet", fix=fix)
    return study.final_path


RunDirectory = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A directory that `vidi train` wrote, or a study, for its answer.",
        show_default=False,
        callback=answer_of,
    ),
]
RunOrStudy = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_STUDY",
        help="A directory that `vidi train`, `tune`, `fit` or `ablate` wrote.",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"vidi {__version__}")
        raise typer.Exit


def asked_config(
    path: Path | None,
    assignments: list[str] | None,
    *,
    model: str | None,
    epochs: float | None,
    minutes: float | None,
) -> Config:
    """The config file, then --set, then the options of the command."""
    from vidi import config as configuration

    asked = configuration.read(path) if path else configuration.Config()
    settings = configuration.parse_settings(assignments or [])
    options = {"model.name": model, "train.epochs": epochs, "train.minutes": minutes}
    settings |= {name: value for name, value in options.items() if value is not None}
    return asked.with_settings(settings)


def loaded_model(name: str | None) -> Any:
    if name is None:
        return None
    from vidi.model import own

    return own(name)
