"""Integrity rules for a case and for all cases: numbers in, findings out. Standard library only.

Each rule is a function that yields findings; what needs arrays was measured by `imaging`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sdseg_cli.core.findings import ERROR, EVERY_CASE, Finding, warning
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
SMALLEST_COHORT = 4
"""Fewer cases have no majority to differ from."""
SPACING_FACTOR = 3.0
"""A spacing this many times the cohort's median, or this part of it, is an outlier."""
MAJORITY = 0.75
COMMON = 0.75
"""A label is compared when at least this share of the cases has it."""
FEWEST_LABELS = 2
"""One organ alone may lie anywhere in a scan; two say which way round it is."""
FAR, FAR_TIMES = 0.08, 3.0
"""So far from its usual place (as a share of the grid, and so many times the usual distance) ..."""
NEARER = 0.5
"""... and at most this part of it when mirrored: then the case is called mirrored."""

_DIRECTIONS = ("front to back", "left to right", "head to feet")

_Places = dict[int, float]
"""Label -> where its centre lies along one axis, as a share of the grid."""


@dataclass(frozen=True)
class Expected:
    """The description a data set gives of itself.

    Attributes:
        ct: Whether its scans are CT; None = unknown.
        target: Labels that count as foreground; None = every label but 0.
        declared: Labels that may occur; None = not said.
        several: Each label is a class, or there are several of labels.
    """

    ct: bool | None = None
    target: tuple[int, ...] | None = None
    declared: tuple[int, ...] | None = None
    several: bool = False


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
    """Check the values of a scan; also used by `predict`."""
    if scan.not_finite:
        yield Finding(
            "values-not-finite",
            ERROR,
            id,
            f"{scan.not_finite} voxels are NaN or infinite",
            "Replace them, for example by -1000 in CT, or leave the case out.",
        )
    if scan.minimum == scan.maximum:
        yield warning(
            "values-constant",
            id,
            f"every voxel is {scan.minimum:g}",
            "There is nothing to see: export the scan again, or leave the case out.",
        )
    elif is_like_a_mask(scan):
        yield warning(
            "image-looks-like-mask",
            id,
            f"only {scan.distinct} whole values, {scan.minimum:g} to {scan.maximum:g}, "
            f"{scan.zero_share:.0%} of them 0",
            "Give the scan, not its mask; were the two patterns or folders swapped?",
        )
    else:
        yield from check_hounsfield(id, scan, ct)


def is_like_a_mask(scan: ScanStatistics) -> bool:
    """True if a scan looks like a label map."""
    few = scan.distinct is not None and scan.distinct <= MASK_VALUES
    return few and scan.zero_share >= MASK_ZEROS


def check_grid(id: str, grid: GridStatistics) -> Iterator[Finding]:
    """Check an affine, as far as it could be read at all."""
    if grid.shear_degrees:
        yield warning(
            "image-straightened",
            id,
            f"axes {grid.shear_degrees:.2g} degrees off right angles",
            "Read as the nearest rotation; a NIfTI mask keeps the header. Resample to be exact.",
        )
    yield from _check_place(id, grid)
    if grid.spare_bytes:
        yield warning(
            "bytes-unread",
            id,
            f"{grid.spare_bytes:,} bytes follow the voxels that the header claims",
            "Does it claim too few slices or volumes? Compare with the scan's source, or export it "
            "again.",
        )
    if any(not SPACING_MM[0] <= length <= SPACING_MM[1] for length in grid.spacing_mm):
        yield warning(
            "spacing-implausible",
            id,
            f"voxels of {_lengths(grid.spacing_mm)} mm",
            "Repair the header's zooms and affine, or its unit: mm, micrometres or metres.",
        )


def _check_place(id: str, grid: GridStatistics) -> Iterator[Finding]:
    """Check that all readers place a NIfTI scan alike by its header."""
    if not grid.says_place:
        yield warning(
            "place-unsaid",
            id,
            "sform and qform codes are both 0: each reader guesses how it lies",
            "It is read from the feet to the head, as nibabel does; others turn it upside down: "
            "set the codes, or export the scan again.",
        )
    if grid.forms_apart_mm:
        yield warning(
            "place-twofold",
            id,
            f"sform and qform lie {grid.forms_apart_mm:.3g} mm apart",
            "The sform is read; others take the qform. Set one to the other, or a code to 0.",
        )
    if not grid.unit_known:
        yield warning(
            "unit-unknown",
            id,
            "the header's unit of length has no meaning (code 4 to 7)",
            "It is read as millimetres: set xyzt_units to 2, or to the right unit.",
        )


def check_labels(
    id: str, mask: LabelStatistics, expected: Expected, *, is_picture: bool
) -> Iterator[Finding]:
    """Check the values of a label map."""
    labels, target = mask.labels, expected.target
    shown = _values(labels)
    if not labels:
        yield warning(
            "label-empty",
            id,
            f"none of {mask.voxels:,} voxels is labelled",
            "Right for a case without finding; else export the mask again or leave the case out.",
        )
    elif 0 not in mask.counts:
        yield warning(
            "label-full",
            id,
            f"no background: every voxel is labelled ({shown})",
            "Export the mask with 0 as background.",
        )
    elif target is not None and not set(labels) & set(target):
        yield warning(
            "label-empty",
            id,
            f"labels {shown}, none of the target's {_values(target)}",
            f"If these are meant: --target {','.join(map(str, labels[:MANY_LABELS]))}",
        )
    if labels == (255,) and target is None and not is_picture:
        yield warning(
            "label-255",
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
            yield warning(
                "label-undeclared",
                id,
                f"labels {_values(strange)} beside the declared {_values(expected.declared)}",
                "Name those that count: --target "
                + ",".join(map(str, expected.target or expected.declared)),
            )
    elif expected.target is None and len(labels) > MANY_LABELS and expected.several:
        yield warning(
            "labels-many",
            id,
            f"{len(labels) + 1} label values, 0 to {labels[-1]}; each but 0 would be a class",
            f"Choose with --classes, for example --classes {labels[0]},{labels[1]}; --classes any "
            f"makes one foreground of all. Present: {shown}",
        )
    elif expected.target is None and len(labels) > MANY_LABELS:
        yield warning(
            "labels-many",
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


def _lengths(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing_mm)


def check_hounsfield(id: str, scan: ScanStatistics, ct: bool | None) -> Iterator[Finding]:
    """Check that a CT is in Hounsfield units: air near -1000, soft tissue near 0.

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
        yield warning(
            "hu-wrapped",
            id,
            f"{reach}; {scan.wrapped_share:.0%} in 64512..65535: -1024..-1 stored without sign",
            "Store the voxels as int16 (subtract 65536 from those above 32767) and export again.",
        )
    elif lost and _is_shifted(scan):
        yield warning(
            "hu-offset",
            id,
            f"{reach}, none negative; {scan.shifted_share:.0%} of the tissue in 850..1150: "
            "HU + 1024 (or 1000)",
            "Set the header's scl_inter to -1024, or subtract 1024 (1000 where air is 0).",
        )
    elif ct and lost and scan.maximum - scan.minimum < SMALLEST_RANGE_HU:
        yield warning(
            "hu-range",
            id,
            f"{reach}: {NO_CT} (MR, or windowed or scaled: no Hounsfield units)",
            "Export the scan in HU, or give these values as the window: "
            f"--window {scan.minimum:g},{scan.maximum:g}",
        )
    elif ct and lost:
        yield warning(
            "hu-offset",
            id,
            f"{reach}, none negative: {NO_CT} (MR, or slope or intercept is lost)",
            "Restore the header's scl_slope and scl_inter (often 1 and -1024), or export again.",
        )
    elif ct and scan.beyond_share >= BEYOND_SHARE:
        yield warning(
            "hu-range",
            id,
            f"{reach}; {scan.beyond_share:.1%} beyond any tissue or metal",
            "Check scl_slope and scl_inter, or export the scan again.",
        )


def _is_shifted(scan: ScanStatistics) -> bool:
    reaches = SMALLEST_RANGE_HU < scan.maximum <= 6000
    return reaches and scan.shifted_share >= SHIFTED_SHARE


def check_cohort(
    cases: Sequence[CaseFacts], split: Mapping[str, str], expected: Expected
) -> Iterator[Finding]:
    """Every rule that needs all cases.

    Args:
        cases: What was measured.
        split: Case id -> "train", "val" or "test"; empty when there is none.
        expected: What the data set says of itself.
    """
    yield from check_duplicates({case.id: case.sha256 for case in cases}, split)
    yield from _check_target(cases, expected)
    yield from _check_squares(cases)
    yield from _check_binary(cases)
    for group in _cohorts(cases):
        yield from _check_spacing(group)
        yield from _check_orientation(group)
        yield from check_mirrored(group)


def check_duplicates(contents: Mapping[str, str], split: Mapping[str, str]) -> Iterator[Finding]:
    """The same image under two names; across splits the test would know the answer.

    Args:
        contents: Case id -> hash of its decoded image; "" = unknown.
        split: As for `check_cohort`.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for id, content in contents.items():
        if content:
            groups[content].append(id)
    for first, *others in groups.values():
        for id in others:
            here, there = split.get(id), split.get(first)
            if here and there and here != there:
                yield Finding(
                    "leakage",
                    ERROR,
                    id,
                    f"the same image as case {first}: one is in {there}, the other in {here}",
                    "Delete one, put both into one split with --split-file, or prepare with "
                    "--skip-bad.",
                )
            else:
                yield warning(
                    "duplicate",
                    id,
                    f"the same image as case {first}",
                    "Delete one of the two: it counts double.",
                )


def _check_target(cases: Sequence[CaseFacts], expected: Expected) -> Iterator[Finding]:
    measured = [case.labels for case in cases if case.labels is not None]
    present = sorted({label for mask in measured for label in mask.labels})
    if expected.target and present and not set(present) & set(expected.target):
        yield Finding(
            "target-absent",
            ERROR,
            EVERY_CASE,
            f"target {_listed(expected.target)} occurs in no case; labels here: {_listed(present)}",
            f"--target {','.join(map(str, present[:16]))}",
        )


def _check_squares(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Volumes alone: no one expects a photograph to be square."""
    volumes = [case for case in cases if case.grid is not None and case.grid.spacing_mm]
    odd = [case for case in volumes if case.grid and case.grid.plane[0] != case.grid.plane[1]]
    if odd and odd[0].grid:
        rows, columns = odd[0].grid.plane
        yield warning(
            "planes-not-square",
            _who(odd),
            f"{len(odd)} of {len(volumes)} scan(s), such as {odd[0].id} with {columns}x{rows}",
            "Nothing to do: planes are padded to a square, masks are cropped back.",
        )


def _check_binary(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    masks = [case for case in cases if case.labels is not None]
    grey = [(case.labels.between_share, case) for case in masks if case.labels is not None]
    grey = [(share, case) for share, case in grey if share > 0]
    if grey:
        worst, case = max(grey, key=lambda pair: pair[0])
        kind = case.label.suffix if case.label else ""
        yield warning(
            "mask-not-binary",
            _who([case for _, case in grey]),
            f"{len(grey)} of {len(masks)} {kind} mask(s) hold values between 0 and 255: "
            f"{median(share for share, _ in grey):.1%} of the pixels, at most {worst:.1%} "
            f"({case.id})",
            "Every value but 0 counts as foreground: save the masks as 0 and 255."
            if any(facts.labels is not None and facts.labels.graded for _, facts in grey)
            else "Nothing to do: the data set says which values count. PNG masks would be sharper.",
        )


def _cohorts(cases: Sequence[CaseFacts]) -> list[list[CaseFacts]]:
    """Volumes of one collection, large enough to have a majority."""
    groups: dict[object, list[CaseFacts]] = defaultdict(list)
    for case in cases:
        if case.grid is not None and case.grid.spacing_mm:
            groups[case.image.parent.parent].append(case)
    return [group for group in groups.values() if len(group) >= SMALLEST_COHORT]


def _check_spacing(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Sorted spacings, so that the order of the axes does not matter."""
    spacings = [(case, sorted(case.grid.spacing_mm)) for case in cases if case.grid]
    usual = [median(lengths[axis] for _, lengths in spacings) for axis in range(3)]
    for case, lengths in spacings:
        factor = max(max(a / b, b / a) for a, b in zip(lengths, usual, strict=True))
        if factor > SPACING_FACTOR:
            yield warning(
                "spacing-outlier",
                case.id,
                f"voxels of {_lengths(lengths)} mm, the median is {_lengths(usual)} mm",
                "Check the header's zooms and affine; a scan of another protocol may be left out.",
            )


def _check_orientation(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    codes = Counter(case.grid.axis_codes for case in cases if case.grid)
    usual, count = codes.most_common(1)[0]
    if count < MAJORITY * len(cases):
        return
    for case in cases:
        if case.grid and case.grid.axis_codes != usual:
            yield warning(
                "orientation-outlier",
                case.id,
                f"stored {case.grid.axis_codes}, {count} of {len(cases)} cases are {usual}",
                "Slices follow the affine, so nothing to do if it is right: look at one overlay.",
            )


def _who(cases: Sequence[CaseFacts]) -> str:
    return cases[0].id if len(cases) == 1 else EVERY_CASE


def _listed(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels[:16])) + (", ..." if len(labels) > 16 else "")


def check_mirrored(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Findings for the cases of one collection.

    Args:
        cases: At least a handful, with their labels' centres.
    """
    masks = {case.id: case.labels.centres for case in cases if case.labels is not None}
    seen = Counter(label for centres in masks.values() for label in centres)
    common = {label for label, count in seen.items() if count >= COMMON * len(masks)}
    for axis, direction in enumerate(_DIRECTIONS):
        places = {
            id: {label: place[axis] for label, place in centres.items() if label in common}
            for id, centres in masks.items()
        }
        places = {id: found for id, found in places.items() if len(found) >= FEWEST_LABELS}
        yield from _along(places, direction)


def _along(cases: dict[str, _Places], direction: str) -> Iterator[Finding]:
    if not cases:
        return
    labels = set().union(*cases.values())
    usual = {
        label: median(places[label] for places in cases.values() if label in places)
        for label in labels
    }
    apart = {id: _distance(places, usual) for id, places in cases.items()}
    limit = max(FAR, FAR_TIMES * median(apart.values()))
    for id, places in cases.items():
        mirrored = _distance({label: 1 - place for label, place in places.items()}, usual)
        if apart[id] > limit and mirrored < NEARER * apart[id]:
            yield warning(
                "mirrored",
                id,
                f"labels up to {apart[id]:.0%} of the grid from where other cases have them, "
                f"{mirrored:.0%} if mirrored {direction}",
                "Look at it; if it is mirrored, repair the affine of its scan and mask.",
            )


def _distance(places: _Places, usual: _Places) -> float:
    return max(abs(place - usual[label]) for label, place in places.items())
