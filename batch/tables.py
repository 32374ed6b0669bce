"""Writes the table in one piece: Parquet, CSV or JSON Lines, by the suffix of its name; all three hold the same."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch.rows import COLUMNS, Kind, Row, flat
from modules.records import DISCLAIMER

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_GROUP = 5000  # chosen, not fitted: a group of rows is what Parquet holds in memory
# What a spreadsheet may take for a formula at the start of a cell, full-width forms included; and the mark itself, so
# that removing one mark always gives the text back.
RUNNABLE = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
MARK = "'"


class TableError(Exception):
    """The table cannot be written; the message says why, and what to do."""


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of the tables that can be written."""
    return tuple(WRITERS)


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows beside the path, then put them in its place: what stood there stays until all is written."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        WRITERS[path.suffix.lower()](unfinished, map(flat, rows))
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as exc:
        raise TableError(
            f"{path} cannot be written: {exc.strerror or exc}. Every film is in the journal; when that is put right, "
            "the same command writes the table."
        ) from exc
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    # The byte order mark tells a spreadsheet that this is UTF-8.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        file.write(",".join(column.name for column in COLUMNS) + "\r\n")
        for row in rows:
            file.write(",".join(_cell(value) for value in row.values()) + "\r\n")


def _cell(value: Any) -> str:
    """Return a cell as RFC 4180 has it: text in quotes and harmless to a spreadsheet, numbers bare, null empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    marked = MARK + text if text.startswith(RUNNABLE) else text
    return '"' + marked.replace('"', '""') + '"'


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def parquet_schema() -> "pa.Schema":
    """Return the schema: a type for each column, and the disclaimer among the metadata."""
    import pyarrow as pa

    types: dict[Kind, pa.DataType] = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "whole": pa.int64(),
        "number": pa.float64(),
        "flag": pa.bool_(),
    }
    fields = [pa.field(column.name, types[column.kind], nullable=column.name != "file") for column in COLUMNS]
    return pa.schema(fields, metadata={"disclaimer": DISCLAIMER})


WRITERS: dict[str, Callable[[Path, Iterator[dict[str, Any]]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
