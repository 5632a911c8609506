"""`sdseg weights list|add|fetch|export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output, show_help
from sdseg_cli.cli.options import one_input, pair, refuse_pipes, workspace
from sdseg_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from sdseg_cli.model.weights import Entry, WeightStore
    from sdseg_cli.runs.package import Package

weights = typer.Typer(
    name="weights",
    help="Pretrained weights in, packages of trained models out.",
    rich_markup_mode=None,
    invoke_without_command=True,
    callback=show_help,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@weights.command("list", cls=opt.PanelCommand)
def list_stored(
    as_json: opt.Json = False, quiet: opt.Quiet = False, debug: opt.Debug = False
) -> None:
    """Show what is in the store, and what can be fetched."""
    from sdseg_cli.model.weights import KNOWN

    store = _store()
    entries, damaged = store.entries(), store.damaged()
    here = {entry.name for entry in entries} | damaged.keys()
    absent = [known for known in KNOWN.values() if known.name not in here]
    output = Output(as_json=as_json, quiet=quiet)
    output.result(
        {
            "store": str(store.folder),
            "weights": [entry.to_json() for entry in entries],
            "damaged": [{"name": name, "why": why.message} for name, why in damaged.items()],
            "known": [
                {"name": known.name, "what": known.what, "from": known.place} for known in absent
            ],
        },
        title=f"weight store {store.folder}",
        columns=("name", "kind", "widths", "MB", "from", "sha256"),
        rows=[
            (
                entry.name,
                entry.kind,
                _widths(entry),
                f"{entry.bytes / 1e6:.1f}",
                entry.source,
                entry.source_sha256[:12],
            )
            for entry in entries
        ]
        + [(name, "damaged", *"----") for name in damaged],
    )
    for why in damaged.values():
        output.say(f"{why.message} {why.hint}")
    for known in absent:
        output.say(f"not here: {known.name}, {known.what}; sdseg weights fetch {known.name}")


@weights.command(cls=opt.PanelCommand)
def add(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="kl-f8, LDM-8, SD VAE, official SDSeg or LPIPS weights."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name in the store; default: the file's.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Check a weights file and store it; no code in it is ever run."""
    from sdseg_cli.training.weights import add_weights

    refuse_pipes(path)
    store = _store()
    _show_entry(add_weights(path, store, name=name), store, Output(as_json=as_json, quiet=quiet))


@weights.command(cls=opt.PanelCommand)
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in `sdseg weights list`.")],
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Download public weights into the store; resumes if interrupted."""
    from sdseg_cli.training.weights import fetch_weights

    output, store = Output(as_json=as_json, quiet=quiet), _store()
    with output.progress() as progress:
        entry = fetch_weights(name, store, progress=progress)
    _show_entry(entry, store, output)


@weights.command(cls=opt.PanelCommand)
def export(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run, or an official SDSeg model in the store."),
    ] = None,
    run_option: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="The same as the argument.")
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to make; default: NAME.sdseg. A package is replaced."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="For an official model: HU window LO,HI, or pictures."),
    ] = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="For an official model: keep its weights in float32.")
    ] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Write a small package for `predict --model`.

    It holds float16 weights, settings, their sha256 and the terms of use.
    """
    run = one_input(run, run_option, "RUN", "--run")
    stored = _store().find(run) if Path(run).name == run else None
    if stored is not None:
        folder = package or Path(f"{stored.name}.sdseg")
        made = _export_stored(stored, folder, window, half=not float32)
    else:
        from sdseg_cli.runs.run_folder import find_run
        from sdseg_cli.training.weights import export_run

        if window is not None or float32:
            raise ConfigError(
                "--window and --float32 are for official models; a run has its own.",
                "Leave them out: a run's best weights are float16 already.",
            )
        found = find_run(workspace(), run).path.resolve()
        made = export_run(found, package or Path(f"{found.parent.name}-{found.name}.sdseg"))
    output = Output(as_json=as_json, quiet=quiet)
    if made.replaced:
        output.say(f"replaced the package that was in {made.folder}")
    output.result(
        made.to_json(),
        title=f"exported {run}",
        columns=("", "value"),
        rows=[("MB", f"{made.bytes / 1e6:.1f}"), ("sha256", made.sha256[:12])],
        files=[made.folder],
    )


def _export_stored(stored: Entry, folder: Path, window: str | None, *, half: bool) -> Package:
    from sdseg_cli.imaging.intensity import PICTURE_WINDOW, Normalisation
    from sdseg_cli.training.weights import export_stored

    pictures = window == "pictures"
    limits = PICTURE_WINDOW if pictures else pair("--window", window)
    if limits is None:
        raise ConfigError(
            f"{stored.name} does not say which window its scans were given in.",
            "Give --window LO,HI (the official code tests BTCV with -125,275) or pictures.",
        )
    normalisation = Normalisation("window", *limits)
    return export_stored(
        stored, _store(), folder, normalisation=normalisation, pictures=pictures, half=half
    )


def _store() -> WeightStore:
    from sdseg_cli.model.weights import WeightStore

    return WeightStore.default()


def _widths(entry: Entry) -> str:
    return ", ".join(f"{part} {width}" for part, width in sorted(entry.widths.items())) or "-"


def _show_entry(entry: Entry, store: WeightStore, output: Output) -> None:
    output.result(
        {**entry.to_json(), "file": str(store.file(entry))},
        title=f"{entry.name}: {entry.kind}",
        columns=("", "value"),
        rows=[
            ("widths", _widths(entry)),
            ("from", entry.source),
            ("sha256", entry.source_sha256),
            ("MB", f"{entry.bytes / 1e6:.1f}"),
        ],
        files=[store.file(entry)],
    )
