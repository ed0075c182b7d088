"""EXPERIMENT.IMPORTS: methods, trainers and data sets from files and modules of the user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mdistiller.errors import ConfigError, MdistillerError

IMPORTS = "EXPERIMENT.IMPORTS"


def import_methods(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """Import each of ``names`` once; what they register can be named in a configuration then.

    Args:
        names: files (``my_methods.py``) or modules (``my_package.methods``).
        folder: of the YAML file that names them; where they are looked for before the current
            folder.

    Returns:
        The names as seen from the current folder, which is what ``config.yaml`` keeps.

    Raises:
        ConfigError: there is none of such a name, or importing it failed.
    """
    folders = [f for f in (folder, Path()) if f is not None]
    return [
        _import_file(name, folders) if name.endswith(".py") else _import_module(name, folders)
        for name in names
    ]


def import_file(name: str, words: str) -> ModuleType:
    """The module that is the file ``name``, seen from the current folder; run once.

    Args:
        words: begin the message about what is wrong.

    Raises:
        ConfigError: there is no such file, or running it failed.
    """
    try:
        path = Path(_import_file(name, [Path()])).resolve()
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{IMPORTS} {name}", words, 1)) from error.__cause__
    module = _loaded(path)
    assert module is not None
    return module


def _import_file(name: str, folders: Sequence[Path]) -> str:
    candidates = [folder / Path(name).expanduser() for folder in folders]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        places = " or ".join(dict.fromkeys(str(p.absolute().parent) for p in candidates))
        raise ConfigError(f"{IMPORTS} {name}: no such file in {places}")
    path = path.resolve()
    if _loaded(path) is None:
        _search(path.parent)
        _run_file(name, path)
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def _loaded(path: Path) -> ModuleType | None:
    """The module of a file that has been imported, under whatever name."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and os.path.basename(file) == path.name and Path(file).resolve() == path:
            return module
    return None


def _run_file(name: str, path: Path) -> None:
    module_name = path.stem
    found = None if module_name in sys.modules else importlib.util.find_spec(module_name)
    if found is None or Path(found.origin or "").resolve() != path:
        # Another module has this name.
        module_name += "_" + hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{IMPORTS}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except MdistillerError:
        del sys.modules[module_name]
        raise
    except Exception as error:
        del sys.modules[module_name]
        raise _failed(name, error, path) from error


def _import_module(name: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        _search(folder.resolve())
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f"; a file is written with its ending, {name}.py" if "." not in name else ""
            raise ConfigError(f"{IMPORTS} {name}: no such module{hint}") from None
        raise _failed(name, error) from error
    except (TypeError, ValueError) as error:
        raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error
    return name


def _search(folder: Path) -> None:
    """Let modules in ``folder`` be found, by the processes of data loaders, too."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _failed(name: str, error: Exception, path: Path | None = None) -> ConfigError:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if path is None or Path(f.filename) == path]
    where = f" line {lines[-1]}" if path is not None and lines else ""
    if isinstance(error, SyntaxError) and error.lineno:
        where = f" line {error.lineno}"
    message = " ".join(str(error).split())
    return ConfigError(f"{IMPORTS} {name}{where}: {type(error).__name__}: {message}")
