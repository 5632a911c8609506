"""Every network of `sdseg train --model`: its source, its weights and its arithmetic.

    python -m benchmarks.networks [NAME ...]

A Markdown table, as in `docs/CLI.md`: weights that a prediction uses, in millions, and GFLOP
of a slice of 256x256 px of one class, a multiplication and an addition counting one each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu_baselines import size
from sdseg_cli.core.config import BASELINES, SCALES, SDSEG, models
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import for_network, preset

PAPER = "Lin et al., 2024, arXiv 2406.18361"
"""Of SDSeg itself."""
HEAD = ("`--model`", "paper", "code", "`tiny`: M, GFLOP", "`sd`: M, GFLOP", "published M", "start")


def row(name: str) -> str:
    """The line of a network.

    Raises:
        ConfigError: A package it needs is not installed.
    """
    cells = [f"`{name}`"]
    if name == SDSEG:
        cells += [PAPER, "own, from the paper, Apache-2.0"]
    else:
        cells += [BASELINES[name].paper, BASELINES[name].code]
    for scale in SCALES:
        found = size(for_network(preset(scale), name), torch.device("cpu"))
        cells.append(f"{found['parameters'] / 1e6:.1f}, {found['gflop_per_slice']:.1f}")
    network = BASELINES.get(name)
    cells += ["", "`train --init`"] if network is None else [network.published, network.start]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(models())}")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in models()]:
        parser.error(f"no network {unknown[0]}; choose of {', '.join(models())}")
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for name in args.names or models():
        try:
            print(row(name), flush=True)
        except ConfigError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
