"""The image files below a folder with a folder for each class, and those that do not count."""

from __future__ import annotations

import copy
import csv
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mdistiller.errors import DataError

from ._decode import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

LIST = "labels.csv"

# What file systems, file servers and archives leave, in lower case; see also is_hidden.
_SYSTEM = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"),
    *("$recycle.bin", "recycler", "system volume information", "lost+found"),
    *("@eadir", "#recycle", "@recycle", "#snapshot", "~snapshot", "@recently-snapshot"),
    *("network trash folder", "temporary items", "desktop db", "desktop df"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data: it begins with a dot, or a
    file system, a file server or an archive has left it."""
    return name.startswith(".") or name.lower() in _SYSTEM


class ImageFiles(Dataset):
    """Image files with their labels, like torchvision's ImageFolder in the same order.

    Hidden files and folders, links back to a folder above and files that are linked to again are
    left out with a warning: each file counts once, under one label.

    Args:
        root: has a folder for each class, with images at any depth; or a list ``labels.csv`` with
            the columns file (relative to the root) and label (the name of the class).
        transform: of the RGB image.
        loader: reads the file at a path.

    Attributes:
        classes: their names, sorted; the label is the place in this list.
        samples: (path, label) of each image.

    Raises:
        DataError: the folder cannot be read, or a class has no image.
    """

    def __init__(
        self,
        root: Path,
        transform: Callable[[Any], Any] | None = None,
        loader: Callable[[str], Any] = read_image,
    ) -> None:
        self.root, self.transform, self.loader = str(root), transform, loader
        try:
            if (Path(root) / LIST).is_file():
                self.classes, samples = read_list(Path(root))
                self.keep(samples)
                return
            search = _Search(str(root))
            self.classes = search.classes
            self.keep(search.samples())
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{root}: not a folder of images by class ({reason})") from None
        rest = search.words_of_the_rest()
        if rest:
            warnings.warn(f"{root}: {len(self)} images of {len(self.classes)} classes{rest}")

    def keep(self, samples: list[tuple[str, int]]) -> None:
        """Have these images alone."""
        self.samples = samples
        self.targets = [label for _, label in samples]

    def of(
        self, samples: list[tuple[str, int]], transform: Callable[[Any], Any] | None = None
    ) -> ImageFiles:
        """A set of these images of the same classes, with another transform."""
        other = copy.copy(self)
        other.transform = transform
        other.keep(samples)
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = self.loader(path)
        return image if self.transform is None else self.transform(image), label


def read_list(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Classes and samples of ``root/labels.csv``.

    Raises:
        ValueError: the list has other columns, an empty or repeated entry, or names a file that
            is missing.
    """
    with open(root / LIST, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise ValueError(f"{LIST} must have the columns file and label, and a line for each image")
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
        path = os.path.join(root, name)
        if not name or not label or path in labels:
            raise ValueError(f"{LIST}, line {number}: a file and its label, each file once")
        if not os.path.isfile(path):
            raise ValueError(f"{LIST}, line {number}: there is no file {name}")
        labels[path] = label
    classes = sorted(set(labels.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [(path, numbers[label]) for path, label in labels.items()]


_HIDDEN = "hidden or of the system"
_NO_FILES = "pipes or devices"
_KNOWN = "links to what counts already"


class _Search:
    """Looks through a folder of classes: first what lies in it, then what is linked to."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files: list[tuple[str, str, int]] = []  # folder, name, label
        self._linked_files: list[tuple[str, str, int]] = []
        self._linked_folders: list[tuple[str, int]] = []
        # The real path of each folder that was looked through.
        self._real: dict[str, str] = {}
        self._known = {os.path.realpath(root)}
        self.left_out: dict[str, list[str]] = {}
        self.classes = self._classes()
        for link, label in self._linked_folders:  # grows on the way
            self._follow(link, label)
        self._add_linked_files()

    def _classes(self) -> list[str]:
        folders = []
        for entry in sorted(os.scandir(self.root), key=lambda e: e.name):
            if is_hidden(entry.name):
                self._leave_out(_HIDDEN, entry.path)
            elif entry.is_dir():
                folders.append(entry)
            elif entry.name.lower().endswith(SUFFIXES):
                self._leave_out("beside the folders of the classes", entry.path)
        for label, entry in enumerate(folders):
            if entry.is_symlink():
                self._linked_folders.append((entry.path, label))
            else:
                self._look_through(entry.path, label)
        if not folders:
            raise ValueError("it has no folder of a class" + self.words_of_the_rest())
        return [entry.name for entry in folders]

    def _look_through(self, top: str, label: int) -> None:
        folders = [top]
        while folders:
            folder = folders.pop()
            real = os.path.realpath(folder)
            if real in self._known:
                self._leave_out(_KNOWN, folder)
                continue
            self._known.add(real)
            self._real[folder] = real
            for entry in os.scandir(folder):
                if is_hidden(entry.name):
                    self._leave_out(_HIDDEN, entry.path)
                elif entry.is_dir() and entry.is_symlink():
                    self._linked_folders.append((entry.path, label))
                elif entry.is_dir():
                    folders.append(entry.path)
                elif not entry.name.lower().endswith(SUFFIXES):
                    continue
                elif entry.is_symlink():
                    self._linked_files.append((folder, entry.name, label))
                elif entry.is_file():
                    self._files.append((folder, entry.name, label))
                else:  # whoever opens a pipe waits for ever
                    self._leave_out(_NO_FILES, entry.path)

    def _follow(self, link: str, label: int) -> None:
        here, target = os.path.realpath(os.path.dirname(link)), os.path.realpath(link)
        if os.path.join(here, "").startswith(os.path.join(target, "")):
            self._leave_out("links to a folder above", link)
        else:
            self._look_through(link, label)

    def _add_linked_files(self) -> None:
        if not self._linked_files:
            return
        known = {os.path.join(self._real[folder], name) for folder, name, _ in self._files}
        for folder, name, label in sorted(self._linked_files):
            path = os.path.join(folder, name)
            target = os.path.realpath(path)
            if target in known:
                self._leave_out(_KNOWN, path)
            elif os.path.exists(target) and not os.path.isfile(target):
                self._leave_out(_NO_FILES, path)
            else:
                known.add(target)
                self._files.append((folder, name, label))

    def _leave_out(self, why: str, path: str) -> None:
        self.left_out.setdefault(why, []).append(os.path.relpath(path, self.root))

    def samples(self) -> list[tuple[str, int]]:
        """(path, label), by label, then by folder, then by name."""
        found = Counter(label for _, _, label in self._files)
        empty = [name for label, name in enumerate(self.classes) if not found[label]]
        if empty:
            raise ValueError(
                f"no image in {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}, where the "
                f"names of images end in {', '.join(SUFFIXES)}{self.words_of_the_rest()}"
            )
        self._files.sort(key=lambda file: (file[2], file[0], file[1]))
        return [(os.path.join(folder, name), label) for folder, name, label in self._files]

    def words_of_the_rest(self) -> str:
        """What was left out, after a semicolon; empty if nothing was."""
        parts = []
        for why, paths in self.left_out.items():
            names = ", ".join(sorted(paths)[:3]) + (", ..." if len(paths) > 3 else "")
            parts.append(f"; left out: {len(paths)} {why} ({names})")
        return "".join(parts)
