"""The lowest versions that pyproject.toml allows, as constraints for pip.

    python scripts/lowest_versions.py > lowest.txt     # of the package itself
    python scripts/lowest_versions.py pictures         # and of an extra

`make test-lowest` installs them and runs the tests with them, so that a lower bound is no guess.
Read from the installed package's metadata: run it where the package is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import requires

from packaging.requirements import Requirement

PACKAGE = "maskclip-bench"


def lowest(lines: Iterable[str], extras: Iterable[str] = ()) -> list[str]:
    """`name==version` for each requirement with a lower bound.

    Args:
        lines: Requirements, as in a package's metadata.
        extras: Also those of these extras.

    Example:
        >>> lowest(["torch>=2.8", "h5py>=3; extra == 'dev'", "setuptools"])
        ['torch==2.8']
    """
    found = []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras))
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if wanted and bounds:
            found.append(f"{requirement.name}=={bounds[0]}")
    return found


if __name__ == "__main__":
    print("\n".join(lowest(requires(PACKAGE) or [], sys.argv[1:])))
