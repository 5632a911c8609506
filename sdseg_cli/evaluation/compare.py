"""Two runs, or two folders of masks, on the same cases: is one better than the other?

Each is evaluated as `evaluate` does it; then their cases are paired by id. Both must have been
judged on the same references. Dice is the metric that decides and is judged by its own p; the
others are looked at beside it, so their p are adjusted for their number (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.files import require_writable
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.core.tables import Cell, strict, write_csv, write_json
from sdseg_cli.data.manifest import set_of
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.folders import FolderOptions, evaluate_folders
from sdseg_cli.evaluation.results import FEW_NOTE, EvaluateReport, shortened
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.metrics.statistics import FEW_CASES, FEWEST_TO_TEST, Paired, paired, with_holm
from sdseg_cli.report.latex import write_latex
from sdseg_cli.report.pictures import comparison_picture
from sdseg_cli.runs.run_folder import RunDir


def compare_runs(
    a: RunDir,
    b: RunDir,
    workspace: Path,
    *,
    options: ScoringOptions | None = None,
    cases: SplitOptions | None = None,
    report: Path | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> Comparison:
    """Compare two runs on one split of the data they were trained on.

    Each run predicts what it has not kept, with its own settings of sampling.

    Args:
        a: A run.
        b: Another.
        workspace: Folder that holds `prepared/` and `runs/`.
        options: How both are judged.
        cases: Which split, and how its cases are predicted.
        report: Folder for the files; None for `report/compare/<A>` in run B.
        command: What was typed, for the reports.
        progress: Called with the slices done.

    Returns:
        The comparison, written.

    Raises:
        ConfigError: Both are one run, or as `evaluate`.
        DataError: They do not have the same cases and references; or as `evaluate`.
        RunError: The disk refused.
    """
    options, cases = options or ScoringOptions(), cases or SplitOptions()
    if a.path.resolve() == b.path.resolve():
        raise ConfigError(f"{a.path} is both A and B.", "Give two runs: see sdseg runs.")
    names = _run_name(a), _run_name(b)
    configs = a.config(), b.config()
    if len({(config.dataset, config.fold) for config in configs}) > 1:
        # Refused before a model predicts for an hour.
        sets = [set_of(workspace, config) for config in configs]
        _require_same_classes(*(one.classes for one in sets))
        ids = [[case.id for case in one.cases(cases.split)] for one in sets]
        _require_same_cases(ids[0], ids[1], names, options)
    folder = report or b.report / "compare" / names[0].replace("/", "-")
    require_writable(folder / "compare.json")  # before a model predicts for an hour, too
    found = [
        evaluate(
            run.path, workspace, options=options, cases=cases, command=command, progress=progress
        )
        for run in (a, b)
    ]
    return _compare(found[0], found[1], names, options).write(folder)


def compare_folders(
    a: Path,
    b: Path,
    ref: Path,
    *,
    reading: FolderOptions | None = None,
    options: ScoringOptions | None = None,
    report: Path | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> Comparison:
    """Compare two folders of masks against the same references.

    Args:
        a: Folder of masks.
        b: Another.
        ref: Folder of references.
        reading: How masks and references are read.
        options: How both are judged.
        report: Folder for the files; None writes none.
        command: What was typed, for the reports.
        progress: Called with the cases done.

    Raises:
        ConfigError: Both are one folder.
        DataError: They do not have the same cases; or as `evaluate_folders`.
        GeometryError: A mask does not lie on its reference's grid.
        RunError: The disk refused.
    """
    options = options or ScoringOptions()
    if a.resolve() == b.resolve():
        raise ConfigError(f"{a} is both A and B.", "Give two folders of masks.")
    if report is not None:
        require_writable(report / "compare.json")
    found = [
        evaluate_folders(
            masks, ref, reading=reading, options=options, command=command, progress=progress
        )
        for masks in (a, b)
    ]
    comparison = _compare(found[0], found[1], (str(a), str(b)), options)
    return comparison if report is None else comparison.write(report)


def _require_same_classes(a: ClassRule, b: ClassRule) -> None:
    if (a.names, a.groups) != (b.names, b.groups):
        raise DataError(
            f"A has the classes {shortened(a.names)}, B {shortened(b.names)}: nothing to compare.",
            "Compare runs of the same classes; or the union of each, as folders of masks with "
            "--ref and --target.",
        )


def _require_same_cases(
    a: Sequence[str], b: Sequence[str], names: tuple[str, str], options: ScoringOptions
) -> list[str]:
    """Refuse cases that only one side has, or say in a note each that they are left out."""
    notes = []
    for own, others, owner in ((a, {*b}, names[0]), (b, {*a}, names[1])):
        alone = [name for name in own if name not in others]
        if not alone:
            continue
        what = f"{len(alone)} {'case is' if len(alone) == 1 else 'cases are'} in {owner} only"
        if not options.allow_missing:
            raise DataError(
                f"{what}: {shortened(alone)}.",
                "Predict the same cases with both, or add --allow-missing to compare the others.",
            )
        notes.append(f"{what} and left out: {shortened(alone)}")
    if not {*a} & {*b}:
        raise DataError("The two have no case in common.", "Compare predictions of the same cases.")
    return notes


def _compare(
    a: EvaluateReport, b: EvaluateReport, names: tuple[str, str], options: ScoringOptions
) -> Comparison:
    """Pair the cases, once they are known to be the same ones."""
    first, second = a.references, b.references
    notes = [*_said(a, b), *_require_same_cases([*first], [*second], names, options)]
    common = [name for name in first if name in second]
    for name in common:
        if first[name] != second[name]:
            raise DataError(
                f"case {name}: the two were judged on different references.",
                "Prepare both sets from the same labels and target, or use --ref for both.",
            )
    empty = [name for name in common if (name in a.excluded) != (name in b.excluded)]
    if empty:
        notes.append(
            "empty reference, and only one of the two found nothing (right, but without a Dice): "
            + ", ".join(empty)
        )
    both = [name for name in common if name in a.excluded and name in b.excluded]
    if both:
        notes.append(f"empty reference, and both found nothing, so not compared: {', '.join(both)}")
    return Comparison(_only(a.to_json(), common), _only(b.to_json(), common), names, tuple(notes))


def _said(a: EvaluateReport, b: EvaluateReport) -> list[str]:
    """The notes of both evaluations, each once."""
    shared = [note for note in a.notes if note in b.notes]
    own = [f"{side}: {n}" for side, of in (("A", a), ("B", b)) for n in of.notes if n not in shared]
    return [*shared, *own]


def _only(found: Evaluation, cases: list[str]) -> Mapping[str, Any]:
    kept = set(cases)
    rows = found["cases"]
    if "union" in found:  # of named classes: the rows of each, as of plain labels
        rows = [{**row, "class": of["name"]} for of in found["classes"] for row in of["cases"]]
    return {**found, "cases": [row for row in rows if row["id"] in kept]}


def _run_name(run: RunDir) -> str:
    """Set and name, as `sdseg runs` lists it."""
    return f"{run.path.resolve().parent.name}/{run.path.resolve().name}"


PRIMARY = "dice"
LEVEL = 0.05
P_NOTE = (
    "p: Wilcoxon's signed-rank test, two-sided; that of every metric but dice is adjusted for "
    "their number (Holm)"
)
CLASSES_NOTE = (
    "the mean over classes decides; p of the Dice of each class is adjusted for their number (Holm)"
)
TABLE = ("metric", "A", "B", "B - A", "95 % interval", "n", "p")

Evaluation = Mapping[str, Any]
"""The JSON object of `evaluate`."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    a: Evaluation
    b: Evaluation
    names: tuple[str, str]
    """Names of A and B: runs or folders."""
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The metrics that both have."""
        return tuple(name for name in self.a["metrics"] if name in self.b["metrics"])

    @cached_property
    def cases(self) -> dict[str, tuple[dict[str, float | None], dict[str, float | None]]]:
        """Case -> its values of A and of B, in A's order.

        With several classes, the mean over those that have a value in both: a class that only one
        of them found would make the other's mean that of other classes.
        """
        first, second = (_by_case(one) for one in (self.a, self.b))
        found = {}
        for name in dict.fromkeys([*first, *second]):
            rows = first.get(name, {}), second.get(name, {})
            means = {column: _means(*rows, column) for column in self.columns}
            found[name] = (
                {column: pair[0] for column, pair in means.items()},
                {column: pair[1] for column, pair in means.items()},
            )
        return found

    @cached_property
    def metrics(self) -> dict[str, Paired]:
        """Column -> B against A."""
        found = {
            name: paired(
                [values[name] for values, _ in self.cases.values()],
                [values[name] for _, values in self.cases.values()],
                self.a["better"][name],
            )
            for name in self.columns
        }
        beside = with_holm({name: one for name, one in found.items() if name != PRIMARY})
        return {name: beside.get(name, one) for name, one in found.items()}

    @cached_property
    def classes(self) -> dict[str, Paired]:
        """With named classes, the Dice of each: B against A, p adjusted for their number."""
        if "union" not in self.a:
            return {}
        better = self.a["better"][PRIMARY]
        return with_holm({name: paired(*each, better) for name, each in self.class_dice.items()})

    @cached_property
    def class_dice(self) -> dict[str, tuple[list[float | None], list[float | None]]]:
        """With named classes, the Dice of each in A and in B, case by case."""
        found = {}
        for one in self.a["classes"]:
            first, second = (
                {row["id"]: row[PRIMARY] for row in of["cases"] if row["class"] == one["name"]}
                for of in (self.a, self.b)
            )
            ids = dict.fromkeys([*first, *second])
            found[one["name"]] = ([first.get(id) for id in ids], [second.get(id) for id in ids])
        return found

    @property
    def verdict(self) -> str:
        """The conclusion the numbers allow for the primary metric, in a sentence."""
        found = self.metrics[PRIMARY]
        if found.n == 0 or found.difference is None:
            return "No case has a Dice in both: nothing can be said."
        low, high = found.ci95
        interval = (
            "" if low is None or high is None else f", 95 % interval {low:+.3f} to {high:+.3f}"
        )
        head = f"Mean Dice of B - A: {found.difference:+.4f} over {found.n} cases{interval}."
        if found.p is None:
            differing = found.better_a + found.better_b
            return (
                f"{head} Too few to test: {differing} of them differ, and with fewer than "
                f"{FEWEST_TO_TEST} no result could reach p < {LEVEL}. It describes these cases and "
                "says nothing of others."
            )
        tested = f"Wilcoxon signed-rank p = {found.p:.2g}"
        if found.p >= LEVEL:
            return f"{head} {tested}: no difference is shown, which is no proof that there is none."
        winner = "B" if found.difference > 0 else "A"
        if (found.better_b - found.better_a) * found.difference < 0:
            more = "A" if winner == "B" else "B"
            return (
                f"{head} {tested}, but they point two ways: {more} is better in more cases, "
                f"{winner} by the mean, which a few large differences decide. Look at the cases."
            )
        return f"{head} {tested}: {winner} is better on such cases."

    @property
    def all_notes(self) -> tuple[str, ...]:
        """All notes, with one on the metrics that leave out cases."""
        left_out = []
        for name in self.columns:
            alone_a, alone_b = self._alone(name)
            if count := alone_a + alone_b:
                what = "case" if count == 1 else "cases"
                if self.a["classes"] is not None:
                    what = f"{'pair' if count == 1 else 'pairs'} of case and class"
                left_out.append(
                    f"{name}: {count} {what} with a value in only one of the two, left out "
                    f"(A alone {alone_a}, B alone {alone_b})"
                )
        n = self.metrics[PRIMARY].n
        few = [FEW_NOTE.format(n)] if 1 < n < FEW_CASES else []
        classes = [CLASSES_NOTE] if self.classes else []
        return (*self.notes, *left_out, *few, P_NOTE, *classes)

    def _alone(self, column: str) -> tuple[int, int]:
        """Number of values only A has, and only B has."""
        first, second = (
            {(row["id"], row.get("class")) for row in one["cases"] if row[column] is not None}
            for one in (self.a, self.b)
        )
        return len(first - second), len(second - first)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        rows = [
            {
                "id": name,
                **{
                    f"{column}_{side}": values[column]
                    for column in self.columns
                    for side, values in (("a", a), ("b", b))
                },
            }
            for name, (a, b) in self.cases.items()
        ]
        values = {
            "a": self.names[0],
            "b": self.names[1],
            "grid": self.a["grid"],
            "protocol": self.a["protocol"],
            "split": self.a["split"],
            "tolerance": self.a["tolerance"],
            "detection_iou": self.a["detection_iou"],
            "primary": PRIMARY,
            "verdict": self.verdict,
            "metrics": {name: one.to_json() for name, one in self.metrics.items()},
            "cases": rows,
            **self._classes_json(),
            "notes": self.all_notes,
            "provenance": {"a": self.a["provenance"], "b": self.b["provenance"]},
        }
        return cast("dict[str, Any]", strict(values))

    def _classes_json(self) -> dict[str, Any]:
        rows = [
            {"name": name, "metrics": {PRIMARY: one.to_json()}}
            for name, one in self.classes.items()
        ]
        return {"classes": rows} if rows else {}

    def rows(self) -> list[tuple[str, ...]]:
        """The table under `TABLE`: a row for each metric, then for the Dice of each class."""
        classes = [(f"{PRIMARY} {name}", *_cells(one)) for name, one in self.classes.items()]
        return [*((name, *_cells(one)) for name, one in self.metrics.items()), *classes]

    def write(self, folder: Path) -> Comparison:
        """Write compare.csv, compare.json, compare.tex and compare.png; returns it with its files.

        Raises:
            RunError: The disk refused.
        """
        files = [folder / f"compare.{kind}" for kind in ("csv", "json", "tex", "png")]
        found = self.to_json()
        rows = cast("list[dict[str, Cell]]", found["cases"])
        write_csv(files[0], list(rows[0]) if rows else ["id"], rows)
        write_json(files[1], found)
        caption = (
            f"A: {self.names[0]}. B: {self.names[1]}. {self.a['protocol']} protocol, "
            f"{self.a['grid']} grid. {self.verdict} {P_NOTE}."
        )
        write_latex(files[2], TABLE, self.rows(), caption)
        dice = {name: (a[PRIMARY], b[PRIMARY]) for name, (a, b) in self.cases.items()}
        classes = {}
        for name, one in self.classes.items():
            pairs = zip(*self.class_dice[name], strict=True)
            differences = [b - a for a, b in pairs if a is not None and b is not None]
            classes[name] = differences, one
        comparison_picture(files[3], dice, self.names, self.metrics[PRIMARY], classes)
        return replace(self, files=tuple(files))


_Rows = dict[Any, Mapping[str, Any]]
"""Class -> its row; None where all foreground was scored as one."""


def _by_case(found: Evaluation) -> dict[str, _Rows]:
    """Case -> its rows."""
    gathered: dict[str, _Rows] = {}
    for row in found["cases"]:
        gathered.setdefault(row["id"], {})[row.get("class")] = row
    return gathered


def _means(a: _Rows, b: _Rows, column: str) -> tuple[float | None, float | None]:
    """Means of one case over the classes both have; if none, of the side that has any."""
    first, second = (
        {label: row[column] for label, row in rows.items() if row[column] is not None}
        for rows in (a, b)
    )
    common = [label for label in first if label in second]
    if not common and first and second:
        return None, None
    one, other = (
        [v for k, v in side.items() if not common or k in common] for side in (first, second)
    )
    return (sum(one) / len(one) if one else None, sum(other) / len(other) if other else None)


def _cells(one: Paired) -> tuple[str, ...]:
    low, high = one.ci95
    interval = "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    p = one.p if one.p_holm is None else one.p_holm
    means = ["-" if value is None else f"{value:.3f}" for value in (one.a, one.b)]
    difference = "-" if one.difference is None else f"{one.difference:+.3f}"
    shown = "too few" if p is None else f"{p:.2g}"
    return (*means, difference, interval, str(one.n), shown)
