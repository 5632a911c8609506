"""Whether a CT's values are Hounsfield units: air near -1000, soft tissue near 0.

Three ways to lose them: the rescale intercept was dropped (all values 1024 or 1000 too high, no
negatives), negatives were stored as unsigned 16-bit numbers (-1024 became 64512), or the scan was
windowed or scaled before.
"""

from __future__ import annotations

from collections.abc import Iterator

from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.imaging.statistics import ScanStatistics

WRAPPED_SHARE = 0.01
"""Of the voxels: even a tight crop of a CT has more air and fat than this."""
SHIFTED_SHARE = 0.5
"""Of the voxels above 300: soft tissue is most of a body; in no MR does half of it lie there."""
NO_NEGATIVES_HU = -10.0
"""Fat alone reaches -100: a CT whose minimum is above this has lost its negatives."""
SMALLEST_RANGE_HU = 500.0
BEYOND_SHARE = 0.001
NO_CT = "this does not look like CT"


def check_hounsfield(id: str, scan: ScanStatistics, ct: bool | None) -> Iterator[Finding]:
    """Findings about the values of a scan.

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
