"""Folders that travel with weights: the modules of sentence-transformers, and further chat templates."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from soupkit.errors import CheckpointError

MODULES = "modules.json"
TEMPLATES = "additional_chat_templates"
WEIGHTS = (".safetensors", ".bin")
"""Modules keep weights of their own (2_Dense) beside the transformer's."""
SUFFIXES = (*WEIGHTS, ".json", ".txt", ".model", ".jinja")


def module_folders(directory: Path) -> list[str]:
    """The folders that modules.json names below a directory, and that of templates.

    Raises CheckpointError for a name that leads out of the directory.
    """
    folders = [TEMPLATES]
    try:
        modules = json.loads((directory / MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        modules = []
    for module in modules if isinstance(modules, list) else []:
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or path in ("", "."):
            continue
        parts = PurePosixPath(path).parts
        if path.startswith(("/", "~")) or "\\" in path or "\0" in path or ".." in parts:
            raise CheckpointError(
                f"{directory / MODULES}: names {path!r}, which is no folder beside it",
                hint="a module may only lie in a folder of its own checkpoint",
            )
        folders.append(str(PurePosixPath(path)))
    return list(dict.fromkeys(folders))


def in_folders(names: Collection[str], folders: Collection[str]) -> list[str]:
    """Those of some relative file names that lie in one of the folders and belong to a module."""
    return sorted(
        name
        for name in names
        if any(name.startswith(f"{folder}/") for folder in folders)
        and name.endswith(SUFFIXES)
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    )


def module_files(directory: Path) -> list[Path]:
    """The files of modules and templates in folders of a directory on this disk; links out of it are not
    followed."""
    root = directory.resolve()
    folders = [
        folder
        for folder in module_folders(directory)
        if (directory / folder).is_dir() and (directory / folder).resolve().is_relative_to(root)
    ]
    names = {
        path.relative_to(directory).as_posix()
        for folder in folders
        for path in (directory / folder).rglob("*")
        if path.is_file()
    }
    return [directory / name for name in in_folders(names, folders)]
