"""How much memory this process may still take: what the machine has free, or less in a container or
a cluster's job, whose limits (cgroups) the machine's own figures do not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of each version of cgroups: limit, use, and what of the use is the files' cache, given up on
demand.
"""


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
