"""The folder that a user names for data of their own."""

from __future__ import annotations

from pathlib import Path

from holdfast.core.errors import InputError


def existing_folder(folder: Path, name: str) -> Path:
    """A folder that is there, with `~` spelt out.

    Args:
        folder: as the user typed it.
        name: of the data set, for the line to type.

    Returns:
        Its path.

    Raises:
        InputError: there is no such folder, or it is a file.
    """
    path = folder.expanduser()
    if path.is_dir():
        return path
    raise InputError(
        f"a folder with the files of {name}",
        f"{str(folder)!r}, which {'is a file' if path.exists() else 'does not exist'}",
        f"type: holdfast demo --data {name} DIR",
    )
