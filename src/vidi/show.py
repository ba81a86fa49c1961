"""What a person sees of long work: a bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from vidi import schedule
from vidi.errors import VidiError
from vidi.facts import StepTiming
from vidi.predict.inputs import find
from vidi.storage import shown
from vidi.words import between, count, p_value, share

if TYPE_CHECKING:
    from vidi.data import Audit, CachedStore
    from vidi.effects import Effect
    from vidi.metrics import Evaluation
    from vidi.model import Listing
    from vidi.plan import Plan
    from vidi.predict import Counts
    from vidi.train import Prepared
    from vidi.train import Progress as Moment
    from vidi.tune.fitting import Doing

# Plain output says something at least this often, and at most this often between validations.
PLAIN_EVERY_S = 10.0
# More redraws than this are not seen by anybody.
REDRAW_EVERY_S = 0.1

Show = Callable[["str | Moment | Doing"], None]


@contextlib.contextmanager
def display(*, quiet: bool = False) -> Iterator[Show]:
    """A function to tell lines and moments of a run to; on standard error, results go elsewhere."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        bar = _Bar(console)
        try:
            yield bar.show
        finally:
            bar.close()
    else:
        yield _Plain().show


@contextlib.contextmanager
def predicting(paths: Sequence[str] | None) -> Iterator[Callable[[Counts], None]]:
    """A function to tell counts of files to. How many there are is counted on the side.

    paths: what was named; None: nobody knows how many there will be.
    """
    total: list[int] = []

    def count() -> None:
        with contextlib.suppress(VidiError, OSError):
            total.append(sum(1 for _ in find(paths or ())))

    if paths is not None:
        threading.Thread(target=count, daemon=True).start()
    moving = sys.stderr.isatty()
    started_at = said_at = time.monotonic()

    def show(counts: Counts) -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at < (REDRAW_EVERY_S if moving else PLAIN_EVERY_S):
            return
        said_at = now
        line = _counted(counts, total[0] if total else None, now - started_at)
        sys.stderr.write(f"\r\x1b[K{line}" if moving else line + "\n")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if moving:
            sys.stderr.write("\r\x1b[K")


def _counted(counts: Counts, total: int | None, elapsed_s: float) -> str:
    rate = counts.done / elapsed_s
    line = f"{counts.done:,} images  {rate:,.0f} images/s"
    if total is not None and rate:
        left = max(0, total - counts.done - counts.skipped)
        line += f"  {duration(left / rate)} left"
    return line + (f"  {counts.bad:,} could not be read" if counts.bad else "")


class _Bar:
    """One line that moves, and above it one line for each validation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._task: TaskID | None = None
        self._drawn_at = 0.0
        self._validated_step = -1

    def show(self, what: str | Moment | Doing) -> None:
        if isinstance(what, str) or _is_doing(what):
            self._console.print(Text(shown(what if isinstance(what, str) else doing_line(what))))
            return
        what = cast("Moment", what)
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=what.last_step, numbers="")
        for note in what.notes:
            self._console.print(Text(shown(note), style="yellow"))
        if _is_new_validation(what, self._validated_step):
            assert what.validation is not None
            self._validated_step = what.validation.step
            self._console.print(Text(validation_line(what)))
        now = time.monotonic()
        if now - self._drawn_at < REDRAW_EVERY_S:
            return
        self._drawn_at = now
        self._progress.update(
            self._task,
            completed=what.step,
            description=f"{_PHASES[what.phase]} epoch {what.epoch:.1f}",
            numbers=numbers(what),
        )
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()


class _Plain:
    """Lines; nothing moves, nothing is coloured."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()
        self._validated_step = -1

    def show(self, what: str | Moment | Doing) -> None:
        if isinstance(what, str) or _is_doing(what):
            _line(what if isinstance(what, str) else doing_line(what))
            return
        what = cast("Moment", what)
        for note in what.notes:
            _line(note)
        now = time.monotonic()
        if _is_new_validation(what, self._validated_step):
            assert what.validation is not None
            self._validated_step = what.validation.step
            if now - self._said_at >= 1.0 or what.step == what.last_step:
                _line(validation_line(what))
                self._said_at = now
        elif now - self._said_at >= PLAIN_EVERY_S:
            _line(f"step {what.step} of {what.last_step}: {numbers(what)}")
            self._said_at = now


def doing_line(doing: Doing) -> str:
    """0:41 of 3:00  fine-tuning from that head (2.1 epochs fit); 87.1 % so far"""
    so_far = "" if doing.accuracy is None else f"; {doing.accuracy:.1%} on held-out images so far"
    return (
        f"{duration(doing.elapsed_s)} of {duration(doing.budget_s)}  {doing.what} "
        f"({doing.why}){so_far}"
    )


def _is_doing(what: Moment | Doing) -> TypeGuard[Doing]:
    """Without importing the module that makes them, which imports torch."""
    return hasattr(what, "why")


_PHASES = {"train": "training  ", "validate": "validating", "save": "saving    "}


def numbers(moment: Moment) -> str:
    """Loss, accuracy, rate, what is left, and waiting where there is any."""
    parts = []
    if moment.loss is not None and moment.accuracy is not None:
        parts.append(f"loss {moment.loss:.3f}  accuracy {moment.accuracy:.1%}")
    parts.append(f"{moment.images_per_second:,.0f} images/s")
    if moment.wait_fraction >= 0.02:
        parts.append(f"waits for data {moment.wait_fraction:.0%}")
    parts.append(f"{duration(moment.remaining_s)} left")
    return "  ".join(parts)


def validation_line(moment: Moment) -> str:
    """One line for each time the weights were validated."""
    validation = moment.validation
    assert validation is not None
    best = "  highest so far" if validation.is_best else ""
    loss = f"loss {moment.loss:.3f}  " if moment.loss is not None else ""
    return (
        f"epoch {moment.epoch:5.1f}  {loss}validation {validation.accuracy:.2%}  "
        f"log loss {validation.log_loss:.3f}{best}"
    )


def duration(seconds: float) -> str:
    """1:05, or 2:01:05."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def decision_table(prepared: Prepared) -> None:
    """Every decision of a plan with its reason, and what the probe measured, on standard output."""
    console = Console(highlight=False)
    table = Table(title="decisions", title_justify="left", box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value")
    table.add_column("why")
    for name, value, reason in prepared.plan.decisions():
        table.add_row(Text(name), Text(value), Text(reason))
    console.print(table)
    console.print(Text(rate_curve(prepared.plan)))
    measured = prepared.facts.measured
    if measured is None or not measured.steps:
        return
    rates = [step.images_per_second for step in measured.steps if step.images_per_second]
    slowest = min(rates, default=1.0)
    table = Table(title="\nmeasured steps", title_justify="left", box=None, pad_edge=False)
    headings = (
        "precision",
        "layout",
        "at once",
        "threads",
        "compiled",
        "malloc",
        "also",
        "images/s",
    )
    for heading in (*headings, "times", ""):
        table.add_column(heading)
    for step in sorted(measured.steps, key=lambda step: -step.images_per_second):
        table.add_row(
            step.precision,
            "channels_last" if step.channels_last else "contiguous",
            str(step.micro_batch_size or step.batch_size),
            str(step.threads),
            f"{step.compile_s:.0f} s" if step.compile else "",
            "kept" if step.keep_memory else "returned",
            ", ".join(_also(step)),
            f"{step.images_per_second:,.3g}",
            f"{step.images_per_second / slowest:.2f}",
            step.rejected,
        )
    console.print(table)


def _also(step: StepTiming) -> list[str]:
    """What only some candidates differ in."""
    words = ["graphs"] if step.cuda_graphs else []
    if step.fused is not None:
        words.append("fused" if step.fused else "not fused")
    return [*words, "augmented on the host"] if step.augment_on == "host" else words


@contextlib.contextmanager
def counting(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A function to tell (done, in all) to, for work that counts images."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    began_at = said_at = time.monotonic()

    def numbers_of(done: int, of: int) -> str:
        rate = done / max(1e-6, time.monotonic() - began_at)
        left = duration((of - done) / rate) if rate else "?"
        return f"{done:,} of {of:,} images  {rate:,.0f} images/s  {left} left"

    if quiet:
        yield lambda _done, _of: None
    elif console.is_terminal:
        with Progress(
            TextColumn(what),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task("", numbers="")
            yield lambda done, of: bar.update(
                task, completed=done, total=of, numbers=numbers_of(done, of)
            )
    else:

        def say(done: int, of: int) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= PLAIN_EVERY_S:
                said_at = time.monotonic()
                _line(f"{what}: {numbers_of(done, of)}")

        yield say


_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
# Classes that fit on a screen; the page and the JSON have all of them.
_MAX_CLASSES = 30


def models_table(listed: Sequence[Listing]) -> None:
    """One line for each model, on standard output."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "mult-adds", "px", "ImageNet"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for line in listed:
        weights = line.licence or ("" if line.accuracy is None else "licence unknown")
        if weights:
            weights += ", at hand" if line.at_hand else ", to download"
        table.add_row(
            line.name,
            "" if line.parameters is None else f"{line.parameters / 1e6:,.2f} M",
            "" if line.multiply_adds is None else f"{line.multiply_adds / 1e6:,.1f} M",
            "" if line.image_px is None else str(line.image_px),
            "" if line.accuracy is None else f"{line.accuracy:.1%}",
            weights,
        )
    # A pipe has no width to fit into.
    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, width=width).print(table)


def audit_tables(audit: Audit) -> None:
    """What an audit found, the worst first, on standard output."""
    console = Console(highlight=False)
    counted = ", ".join(f"{sum(n):,} {split}" for split, n in audit.counts.items() if sum(n))
    _say(
        console,
        f"{audit.name}: {counted} images of {len(audit.classes):,} classes "
        f"({audit.split_rule}); {audit.num_used:,} of {audit.num_found:,} files are used",
    )
    for what, reasons in (("left out", audit.quarantined), ("ignored", audit.ignored)):
        if reasons:
            listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            _say(console, f"{what}: {listed}")
    if audit.height_px and audit.width_px:
        sides = (f"{name} {low} to {high} px, middle {middle}" for name, (low, middle, high) in (
            ("width", audit.width_px), ("height", audit.height_px)))  # fmt: skip
        kinds = ", ".join(f"{count:,} {name}" for name, count in audit.formats.items())
        _say(console, f"{kinds}; {'; '.join(sides)}")
    if audit.findings:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in audit.findings:
            text = Text(shown(finding.message))
            first = finding.groups[0] if finding.groups else finding.paths[:1]
            if first:
                some = " = " if finding.groups else ""
                example = some.join(map(shown, first[:3])) + (" = ..." if len(first) > 3 else "")
                text.append(f"\n  e.g. {example}", style="dim")
            style = _STYLES[finding.severity]
            table.add_row(Text(finding.severity, style=style), Text(finding.code), text)
        console.print()
        console.print(table)
    else:
        _say(console, "nothing stands out")
    _class_table(console, audit)


def evaluation_tables(evaluation: Evaluation) -> None:
    """What accuracy alone does not say: averages, every class, trust, mix-ups; on standard output.

    Intervals are 95 %. Of more than 30 classes those with the lowest F1 are shown.
    """
    console = Console(highlight=False, soft_wrap=True)
    averages = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    averages.add_column("")
    for heading in ("precision", "recall", "F1", "95 % interval of F1"):
        averages.add_column(heading, justify="right", no_wrap=True)
    for name, precision, recall, f1 in (
        ("macro", evaluation.macro_precision, evaluation.macro_recall, evaluation.macro_f1),
        ("weighted", evaluation.weighted_precision, evaluation.weighted_recall,
         evaluation.weighted_f1),
    ):  # fmt: skip
        interval = evaluation.intervals.get(f"{name}_f1")
        averages.add_row(name, _share(precision), _share(recall), _share(f1), _between(interval))
    console.print(averages)
    low, high = evaluation.top5_interval
    _say(console, f"top {evaluation.top_k} {evaluation.top5_accuracy:.1%} ({low:.1%} to {high:.1%})"
         f"; always the largest class {evaluation.majority_accuracy:.1%}")  # fmt: skip
    calibrated = evaluation.calibration
    _say(
        console,
        f"log loss {evaluation.log_loss:.3f}, Brier {evaluation.brier:.3f}, calibration error "
        f"{evaluation.ece:.1%} (a perfect model shows up to {evaluation.ece_noise:.1%})"
        + (
            ""
            if calibrated is None
            else f"; {calibrated.ece:.1%} with temperature {calibrated.temperature.value:.2f}, "
            f"fitted on {calibrated.temperature.fitted_on}"
        ),
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("class", overflow="fold")
    for heading in ("images", "precision", "recall", "F1", "95 % interval of F1"):
        table.add_column(heading, justify="right", no_wrap=True)
    classes = sorted(evaluation.per_class, key=lambda each: -1.0 if each.f1 is None else each.f1)
    for each in classes[:_MAX_CLASSES]:
        table.add_row(
            Text(shown(each.name)), f"{each.n:,}", _share(each.precision), _share(each.recall),
            _share(each.f1), _between(each.f1_interval),
        )  # fmt: skip
    console.print(table)
    if len(classes) > _MAX_CLASSES:
        _say(console, f"and {len(classes) - _MAX_CLASSES:,} better classes; --json has all")
    for pair in evaluation.most_confused[:5]:
        label, predicted = (evaluation.classes[index] for index in (pair.label, pair.predicted))
        _say(console, f"{label} is taken for {predicted}: {pair.n:,} times ({pair.share:.1%})")
    if evaluation.worst_group is not None:
        worst = evaluation.worst_group
        _say(console, f"worst group {worst.name}: {worst.accuracy:.1%} ({count(worst.n, 'image')})")
    for name, value in evaluation.extra.items():
        _say(console, f"{name} {'not defined' if value is None else f'{value:.4g}'}")
    for note in evaluation.notes:
        _say(console, note)


def _share(value: float | None) -> str:
    return "-" if value is None else share(value)


def _between(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else between(interval)


def effect_table(effects: Sequence[Effect], seeds: int) -> None:
    """What each change of an ablation does, on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        # Nothing in a file or a pipe is too narrow.
        console.width = 140
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("change", "to"):
        table.add_column(heading, overflow="fold")
    for heading in ("points", "95 %", "p, Holm", "log loss", "time"):
        table.add_column(heading, justify="right")
    table.add_column("")
    last = ""
    for each in effects:
        factor, last = ("" if each.factor == last else each.factor), each.factor
        known = each.estimate
        if known is None:
            why = f"failed: {each.reason}" if each.failed else "not tried"
            table.add_row(Text(factor), Text(shown(each.level)), *[""] * 5, Text(shown(why)))
            continue
        low, high = known.interval
        table.add_row(
            Text(factor),
            Text(shown(each.level)),
            f"{100 * known.difference:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            p_value(known.p_adjusted),
            "" if each.log_loss is None else f"{each.log_loss:+.3f}",
            "" if each.seconds is None else f"{each.seconds:.2f}x",
            Text(each.verdict, style=_VERDICT_STYLES.get(each.verdict, "dim")),
        )
    console.print()
    console.print(table)
    judged = sum(1 for each in effects if each.estimate)
    _say(
        console,
        f"points of validation accuracy against the base, {seeds} seeds in pairs; an interval is "
        f"for its change alone, a verdict for all {judged} together (Holm)",
    )


_VERDICT_STYLES: Final = {"helps": "green", "hurts": "red"}


def show_value(value: Any) -> None:
    """A part of a report as text on standard output: one name and value a line, lists of rows as
    tables."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000
    _show(console, value, "")


def _show(console: Console, value: Any, indent: str) -> None:
    if isinstance(value, Mapping):
        for name, each in value.items():
            if each and isinstance(each, Mapping | list) and not _is_short(each):
                _say(console, f"{indent}{shown(str(name))}:")
                _show(console, each, indent + "  ")
            else:
                _say(console, f"{indent}{shown(str(name))}: {_as_words(each)}")
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        columns = list(dict.fromkeys(name for each in value for name in each))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, name in enumerate(columns):
            table.add_column(Text((indent if not place else "") + shown(str(name))))
        for each in value:
            cells = [_as_words(each.get(name)) for name in columns]
            table.add_row(Text(indent + cells[0]), *map(Text, cells[1:]))
        console.print(table)
    elif isinstance(value, list) and not _is_short(value):
        for each in value:
            _show(console, each, indent)
    else:
        _say(console, f"{indent}{_as_words(value)}")


def _is_short(value: Any) -> bool:
    """Whether it fits behind its name: a number, a word, a few of them."""
    if isinstance(value, Mapping):
        return False
    return not isinstance(value, list) or (
        len(value) <= 8 and not any(isinstance(each, Mapping | list) for each in value)
    )


def _as_words(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(str(name))} {_as_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_as_words, value))
    if isinstance(value, str) and value.startswith("data:image/"):
        return "(a picture)"
    return shown(str(value))


def _class_table(console: Console, audit: Audit) -> None:
    splits = [split for split, counts in audit.counts.items() if sum(counts)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(split, justify="right")
    for number, name in enumerate(audit.classes[:_MAX_CLASSES]):
        table.add_row(Text(shown(name)), *(f"{audit.counts[split][number]:,}" for split in splits))
    console.print()
    console.print(table)
    if len(audit.classes) > _MAX_CLASSES:
        _say(console, f"and {len(audit.classes) - _MAX_CLASSES:,} more classes")


def _say(console: Console, text: str) -> None:
    console.print(Text(shown(text)), soft_wrap=True)


def cache_table(folder: Path, stores: Sequence[CachedStore]) -> None:
    """The stores of a cache, the last used one first, on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    total = sum(store.num_bytes for store in stores)
    console.print(Text(f"{shown(folder)}: {len(stores)} stores, {total / 1e9:.2f} GB"))
    if not stores:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("data")
    for heading in ("images", "pixels", "GB", "last used"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("folder", overflow="fold")
    now = time.time()
    for store in stores:
        side = f"{store.store_px} x {store.store_px} x {store.channels}" if store.rows else ""
        table.add_row(
            Text(shown(store.name) if store.name else "?"),
            f"{store.rows:,}",
            side,
            f"{store.num_bytes / 1e9:.3f}",
            ago(now - store.used_at),
            "" if store.state == "usable" else store.state,
            Text(shown(str(store.path))),
        )
    console.print(table)


def ago(seconds: float) -> str:
    """3 days ago."""
    for unit, length_s in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length_s:
            count = int(seconds // length_s)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def rate_curve(plan: Plan, columns: int = 60) -> str:
    """The learning rate over the run, drawn with blocks; for a schedule of one's own, in words."""
    name = plan.schedule.name
    if ":" in name:
        return f"\nlearning rate: {name}"
    settings: dict[str, Any] = dict(plan.schedule.settings)
    curve = schedule.make(name, warmup_fraction=plan.schedule.warmup_fraction, **settings)
    blocks = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    shares = [curve(column / (columns - 1)) for column in range(columns)]
    drawn = "".join(blocks[round(each * 8)] for each in shares)
    return f"\nlearning rate, peak {plan.optimizer.learning_rate:.3g}\n|{drawn}|"


def _is_new_validation(moment: Moment, last_step: int) -> bool:
    return moment.validation is not None and moment.validation.step > last_step


def _line(text: str) -> None:
    """Names come from the user's disk: control characters would drive the terminal."""
    sys.stderr.write(shown(text) + "\n")
    sys.stderr.flush()
