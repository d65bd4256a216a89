"""The tables of a run's database, and how one is created and recognised."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

from holdfast.core.errors import RunError

VERSION = 1
"""`PRAGMA user_version` of what this code writes; it reads no other."""

APPLICATION = 0x484F4C44
"""`PRAGMA application_id`: the letters HOLD."""

PAGE = 32768
"""Bytes a page: several sealed chunks of a site's summaries (4 KB each) fit into one, a step's tail row takes three."""

Kind = Literal["value", "summary", "channels", "reading"]
"""What a series holds."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- a watched model; last_step is the last one committed
CREATE TABLE stream (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_step INTEGER NOT NULL, structure TEXT);
-- what a chunk's rows belong to: a cheap value, or a statistic or a measure at a site
CREATE TABLE series (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    site TEXT NOT NULL, unit TEXT NOT NULL, decade INTEGER
);
-- one row a record, until it is sealed into chunks
CREATE TABLE tail (id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, step INTEGER NOT NULL, data BLOB NOT NULL);
-- rows of one series; level 1 is raw, 10, 100 and 1000 are merged over that many steps
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL, level INTEGER NOT NULL, first INTEGER NOT NULL,
    last INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX chunk_place ON chunk (series, level, first, last);
-- rows of a level at or before this step were dropped (but for pinned steps at level 1)
CREATE TABLE trimmed (
    stream INTEGER NOT NULL, kind TEXT NOT NULL, level INTEGER NOT NULL, through INTEGER NOT NULL,
    PRIMARY KEY (stream, kind, level)
) WITHOUT ROWID;
-- a bucket of 10 steps, named by its last, whose raw rows are never dropped
CREATE TABLE pin (stream INTEGER NOT NULL, bucket INTEGER NOT NULL, PRIMARY KEY (stream, bucket)) WITHOUT ROWID;
CREATE TABLE event (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
    message TEXT NOT NULL, site TEXT, data TEXT NOT NULL
);
CREATE TABLE profile (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, step INTEGER NOT NULL, measure TEXT NOT NULL, data TEXT NOT NULL
);
"""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in a new file, all or nothing, and set it to write-ahead logging.

    Args:
        connection: to an empty file, in autocommit mode.
    """
    connection.execute(f"PRAGMA page_size={PAGE}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.executescript(
        f"BEGIN; {_TABLES} PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; COMMIT"
    )


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure that a file is a run of this version, whole as far as its size tells.

    Args:
        connection: to the file.
        path: of the file.

    Raises:
        RunError: it is not.
    """
    application, version, pages, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version", "page_count", "page_size")
    )
    if application == 0 and version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise RunError("a run with recorded steps", f"'{path}', in which nothing was written yet", HOW_TO_RECORD)
    if application != APPLICATION:
        raise RunError("a run's database", f"'{path}', a database of another program", HOW_TO_RECORD)
    if version > VERSION:
        raise RunError(
            f"a run of schema {VERSION}",
            f"'{path}' of schema {version}, written by a newer Holdfast",
            "type: pip install --upgrade holdfast",
        )
    if version != VERSION:
        raise RunError(f"a run of schema {VERSION}", f"'{path}' of unknown schema {version}", HOW_TO_RECORD)
    # With a log beside it, the file itself may lag behind: its pages are in the log.
    log = path.with_name(path.name + "-wal")
    if path.stat().st_size < pages * size and not (log.exists() and log.stat().st_size):
        raise damaged(path, "it is shorter than its own header says")


HOW_TO_RECORD = "record a run with hf.watch(model, optimizer, run=FOLDER), or type: holdfast demo"


def damaged(path: Path, cause: object) -> RunError:
    """The error for a file that can no longer be read.

    Args:
        path: of the file.
        cause: what was seen.

    Returns:
        The error, to be raised.
    """
    return RunError(
        "a run's database that is whole",
        f"'{path}', which is damaged ({cause})",
        "restore it from a copy, or name an earlier attempt: RunReader(folder, attempt=N)",
    )
