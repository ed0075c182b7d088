"""Which fonts are for training and which for the test, so that the test's are really unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mdistiller.seeding import derive_seed

TEST_SHARE = 0.1
# No group of packages makes up more of the test than this: one design must not decide the result.
_LARGEST_SHARE = 0.2
# Root mean square difference (of values in 0..1) of 4x4 block means below which two fonts count
# as forms of one design. Fonts of one name in two formats lie below 0.03, Latin Modern and
# Computer Modern at 0.05, fonts that merely resemble one another above.
TWIN_DISTANCE = 0.05
_BLOCK = 4
_SPLIT_SEED = 0


def split_packages(
    packages: Sequence[str], families: Sequence[str], images: Sequence[np.ndarray]
) -> dict[str, str]:
    """The side, "train" or "test", of every package.

    Packages that share a family or have :func:`twins` stay together. A tenth of the fonts at
    most is for the test, in groups that a fixed seed chooses, none larger than a fifth of it.
    Were there none so small, the smallest group is the test.

    Args:
        packages: of each font, N.
        families: of each font, N; "" is no family.
        images: of each font [C, H, W] uint8, H and W multiples of 4.

    Returns:
        An empty dictionary if all packages belong together, so that there is nothing to split.
    """
    if not packages:
        return {}
    groups = _groups(packages, families, twins(np.stack(images)))
    sizes = Counter(groups[name] for name in packages)
    if len(sizes) < 2:
        return {}
    room = TEST_SHARE * len(packages)
    largest = _LARGEST_SHARE * room
    test = set()
    for group in sorted(sizes, key=lambda name: derive_seed(_SPLIT_SEED, "glyphs", name)):
        if sizes[group] <= min(room, largest):
            test.add(group)
            room -= sizes[group]
    test = test or {min(sizes, key=lambda name: (sizes[name], name))}
    return {name: "test" if groups[name] in test else "train" for name in sorted(groups)}


def twins(images: np.ndarray) -> list[tuple[int, int]]:
    """The pairs i < j of fonts that are nearer than :data:`TWIN_DISTANCE`.

    Args:
        images: [N, C, H, W] uint8, H and W multiples of 4.
    """
    number, characters, height, width = images.shape
    blocks = images.reshape(number, characters, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    # Whole numbers, which double precision multiplies and adds without rounding.
    sums = blocks.sum(axis=(3, 5), dtype=np.float64).reshape(number, -1)
    squares = (sums**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * (sums @ sums.T)
    limit = (TWIN_DISTANCE * 255 * _BLOCK**2) ** 2 * sums.shape[1]
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(distances < limit), strict=True) if i < j]


def _groups(
    packages: Sequence[str], families: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> dict[str, str]:
    """Of each package the first one, by name, of those that it belongs together with."""
    leader = {name: name for name in packages}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    first_of: dict[str, str] = {}
    ties = [(packages[i], packages[j]) for i, j in pairs]
    for name, family in zip(packages, families, strict=True):
        if family:
            ties.append((name, first_of.setdefault(family.casefold(), name)))
    for one, other in ties:
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    return {name: find(name) for name in leader}
