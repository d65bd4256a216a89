"""Opening a run's database for reading, wherever it lies."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from holdfast.core.errors import RunError
from holdfast.store.schema import HOW_TO_RECORD, check, damaged


@dataclass(slots=True)
class Source:
    """An open database, and what has to go when it is closed.

    Args:
        connection: for reading.
        path: of the file that was asked for.
        copy: a folder with a copy of it, where the file itself could not be opened.
    """

    connection: sqlite3.Connection
    path: Path
    copy: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """A second call does nothing."""
        self.connection.close()
        if self.copy is not None:
            self.copy.cleanup()


def open_database(path: Path) -> Source:
    """Open a run's database for reading.

    Nothing is changed in the file, and nothing but SQLite opens it: closing it otherwise would take away the locks
    that a writer in the same process holds.

    Args:
        path: of the file.

    Returns:
        The open database.

    Raises:
        RunError: it is not a run's, or damaged, or may not be read.
    """
    try:
        return _checked(Source(_connect(path, "mode=ro"), path))
    except sqlite3.DatabaseError as error:
        reason = error
    if isinstance(reason, sqlite3.OperationalError):
        return _elsewhere(path, reason)
    raise _unreadable(path, reason) from reason


def _elsewhere(path: Path, reason: sqlite3.OperationalError) -> Source:
    """A log cannot be read where no shared-memory file can be made beside it: read without it, or from a copy."""
    log = path.with_name(path.name + "-wal")
    try:
        if not (log.exists() and log.stat().st_size):
            return _checked(Source(_connect(path, "immutable=1"), path))
        copy = tempfile.TemporaryDirectory(prefix="holdfast-", ignore_cleanup_errors=True)
        for each in (path, log):
            shutil.copyfile(each, Path(copy.name) / each.name)
        return _checked(Source(_connect(Path(copy.name) / path.name, "mode=rw"), path, copy))
    except PermissionError as error:
        raise RunError(
            "a run's database that can be read", f"'{path}' ({error.strerror})", f"type: chmod u+r '{path}'"
        ) from error
    except (sqlite3.DatabaseError, OSError) as error:
        raise _unreadable(path, reason) from error


def _connect(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{how}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=5.0,
    )


def _checked(source: Source) -> Source:
    try:
        check(source.connection, source.path)
    except BaseException:
        source.close()
        raise
    return source


def _unreadable(path: Path, error: Exception) -> RunError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_NOTADB:
        return RunError("a run's database", f"'{path}', which is not a database", HOW_TO_RECORD)
    if code is not None and code & 0xFF == sqlite3.SQLITE_CANTOPEN:
        return RunError("a run's database that can be read", f"'{path}' ({error})", f"type: chmod u+r '{path}'")
    return damaged(path, error)
