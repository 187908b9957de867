"""The configs that come with the package, and how a command finds the one it was given."""

from __future__ import annotations

import shutil
from pathlib import Path

import cvpeft
from cvpeft.errors import ConfigError

__all__ = ["find_config", "shipped_configs"]


def shipped_configs() -> dict[str, Path]:
    """File name -> the config in the installed package, or in the checkout that is worked in."""
    package = Path(cvpeft.__file__).parent
    folders = (package / "configs", package.parent / "configs")
    folder = next((f for f in folders if f.is_dir()), None)
    return {file.name: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def find_config(path: Path) -> tuple[Path, str]:
    """The file itself where it exists; else the shipped one of that name, copied to where it was looked for.

    All shipped configs are copied beside it, since they refer to each other; none that exists is touched. So a config
    that runs is always the user's own file, and paths in it are relative to a folder of the user's.
    Returns the path and a sentence for the user, empty where nothing was copied.
    """
    shipped = shipped_configs()
    if path.exists() or path.name not in shipped:
        return path, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = [file for name, file in shipped.items() if not (path.parent / name).exists()]
        for file in new:
            shutil.copyfile(file, path.parent / file.name)
    except OSError as error:
        what = f"the shipped configs cannot be copied here ({error.strerror})"
        raise ConfigError("CONFIG", what, where=str(path.parent), fix="work in a folder that can be written") from error
    return path, f"{len(new)} shipped configs were copied to {path.parent}, yours to edit"
