"""Where the files lie that the package brings along, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# In a wheel the configurations lie inside the package (pyproject.toml says so).
CONFIGS = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)


def find(path: str | Path) -> Path:
    """``path`` as seen from the current folder or, if nothing is there, the shipped file.

    So ``configs/digits/kd.yaml`` means the same in a checkout and in an empty folder after
    ``pip install``.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts
    shipped = CONFIGS.joinpath(*parts[1:]) if parts[:1] == ("configs",) else path
    return shipped if shipped.exists() else path


def checkout() -> Path | None:
    """The repository that this package is in; None for an installed one."""
    root = _PACKAGE.parent
    return root if (root / ".git").exists() else None
