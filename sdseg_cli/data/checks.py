"""Integrity rules for one case: numbers in, findings out. Standard library only.

Each rule is a function that yields findings; what needs other cases is in `cohort_checks.py`, and
what needs arrays was measured by `imaging`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdseg_cli.core.findings import ERROR, WARNING, Finding
from sdseg_cli.imaging.measure import CaseFacts, GridStatistics, LabelStatistics, ScanStatistics

MANY_LABELS = 16
"""More labels than this, with none chosen, are hardly meant as one foreground."""
MASK_VALUES, MASK_ZEROS = 64, 0.25
"""At most so many whole values, 0 with at least this share: more like a mask than a scan."""
SPACING_MM = (0.05, 20.0)
"""Spacings beyond these are another unit than millimetres."""
WRAPPED_SHARE = 0.01
"""Of the voxels: even a tight crop of a CT has more air and fat than this."""
SHIFTED_SHARE = 0.5
"""Of the voxels above 300: soft tissue is most of a body; in no MR does half of it lie there."""
NO_NEGATIVES_HU = -10.0
"""Fat alone reaches -100: a CT whose minimum is above this has lost its negatives."""
SMALLEST_RANGE_HU = 500.0
BEYOND_SHARE = 0.001
NO_CT = "this does not look like CT"


@dataclass(frozen=True)
class Expected:
    """What a data set says of itself.

    Attributes:
        ct: Whether its scans are CT; None = unknown.
        target: Labels that count as foreground; None = every label but 0.
        declared: Labels that may occur; None = not said.
    """

    ct: bool | None = None
    target: tuple[int, ...] | None = None
    declared: tuple[int, ...] | None = None


def check_case(case: CaseFacts, expected: Expected) -> Iterator[Finding]:
    """Every rule that needs one case alone."""
    for fault in case.faults:
        yield Finding(fault.code, ERROR, case.id, fault.message, fault.hint)
    if case.label is None:
        yield Finding(
            "label-missing",
            ERROR,
            case.id,
            f"no label map for {case.image.name}",
            "Add it, take the scan out, or pair files with --image-glob and --label-glob.",
        )
    if case.grid is not None:
        yield from check_grid(case.id, case.grid)
    if case.scan is not None:
        yield from check_scan(case.id, case.scan, expected.ct)
    if case.labels is not None:
        yield from check_labels(case.id, case.labels, expected, is_picture=case.scan is None)


def check_scan(id: str, scan: ScanStatistics, ct: bool | None) -> Iterator[Finding]:
    """What the values of a scan must be; also asked by `predict`."""
    if scan.not_finite:
        yield Finding(
            "values-not-finite",
            ERROR,
            id,
            f"{scan.not_finite} voxels are NaN or infinite",
            "Replace them, for example by -1000 in CT, or leave the case out.",
        )
    if scan.minimum == scan.maximum:
        yield Finding(
            "values-constant",
            WARNING,
            id,
            f"every voxel is {scan.minimum:g}",
            "There is nothing to see: export the scan again, or leave the case out.",
        )
    elif is_like_a_mask(scan):
        yield Finding(
            "image-looks-like-mask",
            WARNING,
            id,
            f"only {scan.distinct} whole values, {scan.minimum:g} to {scan.maximum:g}, "
            f"{scan.zero_share:.0%} of them 0",
            "Give the scan, not its mask; were the two patterns or folders swapped?",
        )
    else:
        yield from check_hounsfield(id, scan, ct)


def is_like_a_mask(scan: ScanStatistics) -> bool:
    """Whether a scan looks like a label map."""
    few = scan.distinct is not None and scan.distinct <= MASK_VALUES
    return few and scan.zero_share >= MASK_ZEROS


def check_grid(id: str, grid: GridStatistics) -> Iterator[Finding]:
    """What an affine must be, as far as it could be read at all."""
    if grid.shear_degrees:
        yield Finding(
            "image-straightened",
            WARNING,
            id,
            f"axes {grid.shear_degrees:.2g} degrees off right angles",
            "Read as the nearest rotation; a NIfTI mask keeps the header. Resample to be exact.",
        )
    yield from _check_place(id, grid)
    if grid.spare_bytes:
        yield Finding(
            "bytes-unread",
            WARNING,
            id,
            f"{grid.spare_bytes:,} bytes follow the voxels that the header claims",
            "Does it claim too few slices or volumes? Compare with the scan's source, or export it "
            "again.",
        )
    if any(not SPACING_MM[0] <= length <= SPACING_MM[1] for length in grid.spacing_mm):
        yield Finding(
            "spacing-implausible",
            WARNING,
            id,
            f"voxels of {_lengths(grid.spacing_mm)} mm",
            "Repair the header's zooms and affine, or its unit: mm, micrometres or metres.",
        )


def _check_place(id: str, grid: GridStatistics) -> Iterator[Finding]:
    """What a NIfTI header must say of the place, so that all readers take it for the same."""
    if not grid.says_place:
        yield Finding(
            "place-unsaid",
            WARNING,
            id,
            "sform and qform codes are both 0: each reader guesses how it lies",
            "It is read from the feet to the head, as nibabel does; others turn it upside down: "
            "set the codes, or export the scan again.",
        )
    if grid.forms_apart_mm:
        yield Finding(
            "place-twofold",
            WARNING,
            id,
            f"sform and qform lie {grid.forms_apart_mm:.3g} mm apart",
            "The sform is read; others take the qform. Set one to the other, or a code to 0.",
        )
    if not grid.unit_known:
        yield Finding(
            "unit-unknown",
            WARNING,
            id,
            "the header's unit of length has no meaning (code 4 to 7)",
            "It is read as millimetres: set xyzt_units to 2, or to the right unit.",
        )


def check_labels(
    id: str, mask: LabelStatistics, expected: Expected, *, is_picture: bool
) -> Iterator[Finding]:
    """What the values of a label map must be."""
    labels, target = mask.labels, expected.target
    shown = _values(labels)
    if not labels:
        yield Finding(
            "label-empty",
            WARNING,
            id,
            f"none of {mask.voxels:,} voxels is labelled",
            "Right for a case without finding; else export the mask again or leave the case out.",
        )
    elif 0 not in mask.counts:
        yield Finding(
            "label-full",
            WARNING,
            id,
            f"no background: every voxel is labelled ({shown})",
            "Export the mask with 0 as background.",
        )
    elif target is not None and not set(labels) & set(target):
        yield Finding(
            "label-empty",
            WARNING,
            id,
            f"labels {shown}, none of the target's {_values(target)}",
            f"If these are meant: --target {','.join(map(str, labels[:MANY_LABELS]))}",
        )
    if labels == (255,) and target is None and not is_picture:
        yield Finding(
            "label-255",
            WARNING,
            id,
            "values 0 and 255 instead of 0 and 1",
            "It counts as foreground; --target 255 says so. Beside masks of 0 and 1: remap it.",
        )
    yield from _check_declared(id, labels, expected, shown)


def _check_declared(
    id: str, labels: tuple[int, ...], expected: Expected, shown: str
) -> Iterator[Finding]:
    if expected.declared is not None:
        strange = sorted(set(labels) - set(expected.declared))
        if strange:
            yield Finding(
                "label-undeclared",
                WARNING,
                id,
                f"labels {_values(strange)} beside the declared {_values(expected.declared)}",
                "Name those that count: --target "
                + ",".join(map(str, expected.target or expected.declared)),
            )
    elif expected.target is None and len(labels) > MANY_LABELS:
        yield Finding(
            "labels-many",
            WARNING,
            id,
            f"{len(labels) + 1} label values, 0 to {labels[-1]}; all but 0 would be one foreground",
            f"Choose with --target, for example --target {labels[0]}. Present: {shown}",
        )


def _values(labels: tuple[int, ...] | list[int]) -> str:
    """Labels as text, runs shortened: "1..4, 7"."""
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][-1] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    short = (f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return ", ".join(short)


def _lengths(spacing_mm: tuple[float, ...]) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing_mm)


def check_hounsfield(id: str, scan: ScanStatistics, ct: bool | None) -> Iterator[Finding]:
    """Whether a CT's values are Hounsfield units: air near -1000, soft tissue near 0.

    Three ways to lose them: the rescale intercept was dropped (all values 1024 or 1000 too high, no
    negatives), negatives were stored as unsigned 16-bit numbers (-1024 became 64512), or the scan
    was windowed or scaled before.

    Args:
        id: Case id.
        scan: Its values.
        ct: Whether it is CT; False or None = judge by the values whether it looks like one.
    """
    reach = f"values {scan.minimum:g} to {scan.maximum:g}"
    lost = scan.minimum >= NO_NEGATIVES_HU and not scan.air_share
    if scan.wrapped_share >= WRAPPED_SHARE and scan.minimum >= 0 and scan.maximum <= 65535:
        yield Finding(
            "hu-wrapped",
            WARNING,
            id,
            f"{reach}; {scan.wrapped_share:.0%} in 64512..65535: -1024..-1 stored without sign",
            "Store the voxels as int16 (subtract 65536 from those above 32767) and export again.",
        )
    elif lost and _is_shifted(scan):
        yield Finding(
            "hu-offset",
            WARNING,
            id,
            f"{reach}, none negative; {scan.shifted_share:.0%} of the tissue in 850..1150: "
            "HU + 1024 (or 1000)",
            "Set the header's scl_inter to -1024, or subtract 1024 (1000 where air is 0).",
        )
    elif ct and lost and scan.maximum - scan.minimum < SMALLEST_RANGE_HU:
        yield Finding(
            "hu-range",
            WARNING,
            id,
            f"{reach}: {NO_CT} (MR, or windowed or scaled: no Hounsfield units)",
            "Export the scan in HU, or give these values as the window: "
            f"--window {scan.minimum:g},{scan.maximum:g}",
        )
    elif ct and lost:
        yield Finding(
            "hu-offset",
            WARNING,
            id,
            f"{reach}, none negative: {NO_CT} (MR, or slope or intercept is lost)",
            "Restore the header's scl_slope and scl_inter (often 1 and -1024), or export again.",
        )
    elif ct and scan.beyond_share >= BEYOND_SHARE:
        yield Finding(
            "hu-range",
            WARNING,
            id,
            f"{reach}; {scan.beyond_share:.1%} beyond any tissue or metal",
            "Check scl_slope and scl_inter, or export the scan again.",
        )


def _is_shifted(scan: ScanStatistics) -> bool:
    reaches = SMALLEST_RANGE_HU < scan.maximum <= 6000
    return reaches and scan.shifted_share >= SHIFTED_SHARE
