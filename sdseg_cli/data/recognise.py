"""Which adapter fits a folder, and the cases it finds there. Standard library only."""

from __future__ import annotations

from pathlib import Path

from sdseg_cli.core.errors import ConfigError, DataError, near
from sdseg_cli.core.filenames import require_there
from sdseg_cli.data.layouts import DATASETS, Case, DatasetSpec
from sdseg_cli.data.layouts.folder import FOLDER, UNPAIRED, find_by_globs
from sdseg_cli.data.suggest import holding
from sdseg_cli.data.unexpected_files import sets_in


def find_cases(
    src: Path,
    dataset: str | None = None,
    image_glob: str | None = None,
    label_glob: str | None = None,
) -> tuple[DatasetSpec, list[Case]]:
    """Find the cases of a data set.

    Args:
        src: Its folder.
        dataset: Adapter; recognised by the layout when absent ("folder" when patterns are given).
        image_glob: Pattern of the scans relative to `src`; with `label_glob`.
        label_glob: Pattern of the label maps.

    Returns:
        The adapter, and at least one case, in natural order.

    Raises:
        ConfigError: Unknown adapter, or one pattern without the other.
        DataError: No folder, no cases, or several adapters fit.
    """
    if dataset is not None:
        adapter(dataset)
    if (image_glob is None) != (label_glob is None):
        raise ConfigError(
            "--image-glob and --label-glob go together.",
            "Give both, for example --image-glob '*/ct.nii.gz' --label-glob '*/mask.nii.gz'.",
        )
    if not src.is_dir():
        require_there(src, "Give the folder of the data set.")
        raise DataError(f"{src} is a file, not a folder.", "Give the folder of the data set.")
    if image_glob is not None and label_glob is not None:
        spec = DATASETS[dataset or FOLDER.name]
        return spec.refine(src, spec), find_by_globs(src, image_glob, label_glob)
    spec = DATASETS[dataset] if dataset else _recognised(src)
    try:
        cases = spec.find_cases(src)
    except DataError as error:
        if error.code == UNPAIRED and (here := holding(src)).patterns is not None:
            raise DataError(error.message, f"{here.advice(src)}.", error.code) from error
        raise
    alone = spec is FOLDER and cases and not any(case.label for case in cases)
    if alone and (here := holding(src)).patterns:
        raise DataError(
            f"{src}: no scan has a label map in the layout of {spec.name}; it holds "
            f"{here.words(src)}.",
            f"{here.advice(src)}.",
            UNPAIRED,
        )
    if not cases:
        raise DataError(
            f"{src}: no cases in the layout of {spec.name}.", f"Expected: {spec.summary}."
        )
    return spec.refine(src, spec), cases


def adapter(name: str) -> DatasetSpec:
    """The adapter of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in DATASETS:
        meant = near(name, DATASETS)
        raise ConfigError(
            f"Unknown data set adapter {name!r}.",
            (f"Did you mean {meant[0]}? " if meant else "")
            + f"Known: {', '.join(DATASETS)}. For your own data use folder.",
        )
    return DATASETS[name]


def fitting(src: Path) -> list[DatasetSpec]:
    """The adapters whose layout a folder has; the plain folder only where it finds other scans."""
    found = [spec for spec in DATASETS.values() if spec.recognises(src)]
    named = [spec for spec in found if spec is not FOLDER]
    if not named or FOLDER not in found:
        return found
    plain, known = ({case.image for case in s.find_cases(src)} for s in (FOLDER, named[0]))
    return named if plain <= known else found


def _recognised(src: Path) -> DatasetSpec:
    found = fitting(src)
    if len(found) == 1 and found[0] is not FOLDER:
        return found[0]
    if len(several := sets_in(src)) > 1:
        named = ", ".join(folder.name for folder in several[:5])
        raise DataError(
            f"{src}: holds several data sets: {named}{', ...' if len(several) > 5 else ''}.",
            "Give the folder of one of them.",
        )
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(spec.name for spec in found)
        raise DataError(f"{src} looks like {names}.", "Choose one with --dataset.")
    here = holding(src)
    layouts = "; ".join(f"{spec.name}: {spec.summary}" for spec in DATASETS.values())
    words = here.words(src)
    raise DataError(
        f"{src}: no cases in a layout this tool knows{words and f'; it holds {words}'}.",
        f"{here.advice(src) or 'Use --image-glob and --label-glob'}. Known layouts: {layouts}.",
    )
