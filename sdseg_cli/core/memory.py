"""How much memory this process may still take: what the machine has free, or less in a container or
a cluster's job, whose limits (cgroups) the machine's own figures do not show.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import psutil

from sdseg_cli.core.errors import RunError

_FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of each version of cgroups: limit, use, and what of the use is the files' cache, given up on
demand.
"""


def largest_that_fits(bytes_of: Callable[[int], int], most: int, free: int) -> int:
    """The largest count, from 1 to `most`, that takes no more than what is free; 0 if none.

    Args:
        bytes_of: What a count takes; more for more.
        most: No larger one is looked for.
        free: In bytes.
    """
    return bisect_right(range(1, most + 1), free, key=bytes_of)


def require_batch_fits(bytes_of: Callable[[int], int], size: int, what: str = "predict") -> None:
    """Refuse a batch before memory is taken for it.

    Args:
        bytes_of: About what a batch of a size takes.
        size: Slices that are asked for.
        what: What it is for.

    Raises:
        RunError: It does not fit; the hint names the largest that does.
    """
    need, free = bytes_of(size), available_bytes()
    if need <= free:
        return
    fits = largest_that_fits(bytes_of, size, free)
    raise RunError(
        f"--batch-size {size}: to {what} with it takes {need / 1e9:.2f} GB of memory, and "
        f"{free / 1e9:.2f} GB are free.",
        f"It fits with --batch-size {fits}."
        if fits
        else "Not even one slice fits: end other programs, or take a machine with more memory.",
    )


def available_bytes() -> int:
    """What can still be taken before the system swaps or ends this process."""
    rooms = cgroup_rooms(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min([int(psutil.virtual_memory().available), *rooms])


def cgroup_rooms(membership: Path, mount: Path) -> Iterator[int]:
    """What is left below each limit that this process is under, in bytes; nothing but on Linux.

    Args:
        membership: `/proc/self/cgroup`: lines `number:controllers:/group`.
        mount: Where the groups are, version 2 directly and version 1 in `memory`.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            files, root = _FILES["v2"], mount
        elif "memory" in controllers.split(","):
            files, root = _FILES["v1"], mount / "memory"
        else:
            continue
        # A limit holds for all groups within; in a container the outer ones are not to be seen.
        group = PurePosixPath(name)
        for folder in (group, *group.parents):
            room = _room(root / folder.relative_to("/"), *files)
            if room is not None:
                yield room


def _room(group: Path, limit: str, use: str, cache: str) -> int | None:
    """What is left of a group's limit; None where there is none."""
    try:
        most, used = int((group / limit).read_text()), int((group / use).read_text())
        statistics = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # not there, or "max"
        return None
    given_up = [int(line.split()[1]) for line in statistics if line.split()[0] == cache]
    return max(0, most - used + sum(given_up))
