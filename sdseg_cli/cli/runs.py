"""`sdseg runs`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import WEAK_DICE, number, workspace

if TYPE_CHECKING:
    from sdseg_cli.runs.run_folder import RunSummary


def runs(as_json: opt.Json = False, quiet: opt.Quiet = False, debug: opt.Debug = False) -> None:
    """List the runs of the workspace, the newest first."""
    from sdseg_cli.runs.run_folder import list_runs

    found = list_runs(workspace())
    folder, now = workspace() / "runs", datetime.now(UTC)
    output = Output(as_json=as_json, quiet=quiet)
    output.result(
        {"runs": [run.to_json() for run in found]},
        title=f"runs in {folder}",
        columns=("run", "step", "best Dice", "state", "MB", "written"),
        rows=[_row(run, now) for run in found],
        unbroken=True,
    )
    if not found:
        output.say("no run yet: sdseg train --dataset NAME, or set SDSEG_HOME to your workspace.")
    for run in found:
        if run.default:
            weak = run.best_dice is not None and run.best_dice < WEAK_DICE
            but = f"; its Dice is below {WEAK_DICE:g}: name a better one" if weak else ""
            output.say(f"* is what predict, evaluate and stability take without --run{but}.")


def _row(run: RunSummary, now: datetime) -> tuple[str, ...]:
    preset = "" if run.preset in (None, run.path.name) else f" ({run.preset})"
    best = number(run.best_dice)
    step, steps = ("-" if count is None else str(count) for count in (run.step, run.steps))
    return (
        f"{run.dataset}/{run.path.name}{preset}{' *' if run.default else ''}",
        f"{step}/{steps}",
        best if run.best_step is None else f"{best} at {run.best_step}",
        run.state,
        f"{run.bytes / 1e6:.0f}",
        _ago((now - run.written).total_seconds()),
    )


def _ago(seconds: float) -> str:
    """One number and a unit: `3 h ago`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"
