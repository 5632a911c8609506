"""Data sets: where the cases are, what counts as foreground, which cases test.

A data set is one file with a `DatasetSpec`, and one line in `DATASETS`. Standard library only.
"""

from __future__ import annotations

from sdseg_cli.datasets.btcv import BTCV, BTCV8
from sdseg_cli.datasets.cvc import CVC
from sdseg_cli.datasets.folder import FOLDER
from sdseg_cli.datasets.kseg import KSEG
from sdseg_cli.datasets.refuge2 import REFUGE2
from sdseg_cli.datasets.spec import Case, DatasetSpec

__all__ = ["DATASETS", "Case", "DatasetSpec"]

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec for spec in (BTCV, BTCV8, CVC, KSEG, REFUGE2, FOLDER)
}
"""Every adapter `prepare --dataset` knows, by name."""
