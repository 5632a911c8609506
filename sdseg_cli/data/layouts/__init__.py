"""Data sets: where the cases are, what counts as foreground, which cases test.

A data set is one file with a `DatasetSpec`, and one line in `DATASETS`. Standard library only.
"""

from __future__ import annotations

from sdseg_cli.data.layouts.btcv import BTCV, BTCV8
from sdseg_cli.data.layouts.cvc import CVC
from sdseg_cli.data.layouts.folder import FOLDER
from sdseg_cli.data.layouts.kseg import KSEG
from sdseg_cli.data.layouts.nnunet import DECATHLON, NNUNET
from sdseg_cli.data.layouts.refuge2 import REFUGE2
from sdseg_cli.data.layouts.sts import STS
from sdseg_cli.data.spec import Case, DatasetSpec

__all__ = ["DATASETS", "Case", "DatasetSpec"]

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec for spec in (BTCV, BTCV8, STS, CVC, KSEG, REFUGE2, NNUNET, DECATHLON, FOLDER)
}
"""Every adapter `prepare --dataset` knows, by name."""
