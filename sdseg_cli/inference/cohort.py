"""Many scans -> their masks and a ledger: one model, one bad scan is one row, and a second run does
what the first did not.

What is done to a scan is in `cohort_scan`. An engine calls it scan by scan, here (`one_by_one`) or
on a Ray cluster (`cohort_ray`); a shard is the same command on every n-th scan.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.imaging.scans import Scan
from sdseg_cli.inference.cohort_scan import Outcome, Task, Worker, recorded
from sdseg_cli.inference.ledger import DONE, FAILED, Ledger, Row
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.runtime import stop_signals

Item = TypeVar("Item")

Engine = Callable[[Task, Sequence[Scan], threading.Event], Iterator[Outcome]]
"""Does a task on scans until the event is set, giving outcomes in any order."""


def one_by_one(task: Task, scans: Sequence[Scan], stop: threading.Event) -> Iterator[Outcome]:
    """The engine of one process: scan after scan, with one model."""
    worker = Worker(task, task.identity())
    for scan in scans:
        if stop.is_set():
            return
        yield worker(scan)


@dataclass(frozen=True)
class Shard:
    """Every `count`-th scan, beginning with number `index`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/8`: the third of eight. Raises ConfigError."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError(
                f'--shard "{text}" is no i/n with i from 0 to n-1.',
                "With a SLURM array of 8: --array=0-7 and --shard $SLURM_ARRAY_TASK_ID/8.",
            )
        return cls(int(index), int(count))

    def among(self, ranks: Ranks) -> Shard:
        """This process's part, where torchrun or srun started several on the shard."""
        return Shard(self.index * ranks.world + ranks.rank, self.count * ranks.world)

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Interleaved, so that neighbours, which are often alike, are spread."""
        return items[self.index :: self.count]


@dataclass(frozen=True)
class CohortReport:
    """What was done of a cohort, or of one shard of it.

    Attributes:
        ledger: `ledger.csv`.
        done: Predicted now.
        failed: Rows of those that failed.
        skipped: Done before, and found as they were left.
        left: Not begun, for it was asked to stop.
        seconds: In all.
        scan_seconds: Of those predicted now, together.
        warnings: Of all scans.
        decoder: Which drew the masks, "exact" or "fast"; None without a mask.
    """

    ledger: Path
    done: int
    failed: tuple[Row, ...]
    skipped: int
    left: int
    seconds: float
    scan_seconds: float
    warnings: tuple[Mapping[str, str], ...]
    decoder: str | None = None

    @property
    def seconds_per_scan(self) -> float | None:
        """Mean over those predicted now; None where there were none."""
        return self.scan_seconds / self.done if self.done else None

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        per_scan = self.seconds_per_scan
        return {
            "ledger": str(self.ledger),
            "done": self.done,
            "failed": len(self.failed),
            "skipped": self.skipped,
            "left": self.left,
            "seconds": round(self.seconds, 3),
            "seconds_per_scan": None if per_scan is None else round(per_scan, 3),
            "failures": [
                {"case": row.case, "input": row.input, "error": row.error} for row in self.failed
            ],
            "warnings": list(self.warnings),
            "decoder": self.decoder,
        }


def predict_cohort(
    scans: Sequence[Scan],
    task: Task,
    *,
    shard: Shard | None = None,
    engine: Engine = one_by_one,
    progress: Progress = no_op,
    named: bool = True,
) -> CohortReport:
    """Predict many scans.

    SIGINT, SIGTERM and SIGUSR1 let the scans in work end; whatever ends it, the ledger is written.

    Args:
        scans: All scans of the cohort, in the order in which all its shards know them.
        task: What to do to each.
        shard: Which of them; all by default.
        engine: Who does it.
        progress: Told after each scan.
        named: Somebody asked for this model. Else another process may have begun with another one.

    Raises:
        WeightsError: The model cannot be loaded.
        ConfigError: There is no such device, an option is wrong for all scans, or the masks are
            made with another model.
        RunError: The disk refused.
    """
    task.check(scans)
    started, mine = time.monotonic(), (shard or Shard()).of(scans)
    ledger = Ledger(task.outputs.mask)
    outcomes: list[Outcome] = []
    bad = 0
    everything = {path for scan in scans for path in task.outputs.of(scan).files}
    with ledger.in_use(everything), stop_signals() as stop:
        first = ledger.keep_model(recorded(task.model), named=named)
        ledger.forget_lost([scan.mask for scan in scans])
        try:
            for outcome in engine(task, mine, stop):
                outcomes.append(outcome)
                ledger.publish(at_once=False)
                bad += outcome.row.status == FAILED
                progress(len(outcomes), len(mine), f"scans, {bad} failed" if bad else "scans")
        except BaseException:
            if first and not outcomes:  # it could not be loaded
                ledger.forget_model()
            raise
        finally:
            if outcomes:
                ledger.publish()
    done = [one.row for one in outcomes if not one.skipped and one.row.status == DONE]
    return CohortReport(
        ledger=ledger.table,
        done=len(done),
        failed=tuple(one.row for one in outcomes if one.row.status == FAILED),
        skipped=sum(one.skipped for one in outcomes),
        left=len(mine) - len(outcomes),
        seconds=time.monotonic() - started,
        scan_seconds=sum(row.seconds for row in done),
        warnings=tuple(warning for one in outcomes for warning in one.row.warnings),
        # One for all: another decoder is another task, and all is done again.
        decoder=next((one.row.decoder for one in outcomes if one.row.decoder), None),
    )


def take_own_gpu(ranks: Ranks) -> None:
    """Of several processes on one machine, each computes on its own GPU, as far as they go."""
    if ranks.world > 1 and torch.cuda.is_available():
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())


def leave_together(environment: Mapping[str, str]) -> None:
    """Wait for the other processes of torchrun, which ends all as soon as one ends with an error.

    Those of srun go on without each other, so they do not wait.
    """
    if "TORCHELASTIC_RUN_ID" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
