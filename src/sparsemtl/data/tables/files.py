"""Where a table's files are, and their rows one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparsemtl.data.options import ROOT_VARIABLE, resolve_root
from sparsemtl.data.tables import reading
from sparsemtl.data.tables.columns import Columns
from sparsemtl.data.tables.csv_file import CSVFile, zipped_table
from sparsemtl.data.tables.excel import ExcelFile
from sparsemtl.data.tables.parquet import ParquetFile
from sparsemtl.data.tables.reading import Chunk, Dialect, TableFile, chunks
from sparsemtl.data.tables.targets import Target
from sparsemtl.errors import DataError, ParameterError

ROLES = ("train", "validation", "test")
"""What a folder's files, and the values of a split column, are called."""
TABS, PARQUET, EXCEL = (".tsv", ".tab"), (".parquet", ".pq"), (".xlsx", ".xlsm")
FOREIGN = (".xls", ".xlsb", ".ods", ".numbers", ".json", ".jsonl", ".feather", ".arrow", ".orc", ".h5", ".sav", ".dta")
"""Endings of tables in formats that are not read here."""


def find_files(path: str | Sequence[str], root: str | Path | None) -> tuple[Path, ...]:
    """The files of a table: one; training and test; or training, validation and test.

    Args:
        path: a file, a list of two or three, or a folder in which they are named by their role.
        root: where to look for what is not there.

    Raises:
        DataError: if one is absent, or several have one role.
        ParameterError: if the list has another length.
    """
    if isinstance(path, str):
        place = _there(path, root)
        return _of_folder(place) if place.is_dir() else (place,)
    if len(path) not in (2, 3):
        raise ParameterError(
            f"path: a list names the files of training, validation and test, or of training and test; got {list(path)}."
        )
    return tuple(_there(name, root) for name in path)


def open_table(path: Path, dialect: Dialect, separator: str | None) -> TableFile:
    """A file's table, by the ending of its name: Parquet, Excel, or text.

    Tabs or commas separate the values of a text where nothing is said.

    Raises:
        DataError: if the ending is that of another format, or an archive holds more than one table.
    """
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        return ParquetFile(path, dialect)
    if suffix in EXCEL:
        return ExcelFile(path, dialect)
    inner = Path(zipped_table(path)) if suffix == ".zip" else path
    if inner.suffix.lower() in FOREIGN or (inner != path and inner.suffix.lower() in (*PARQUET, *EXCEL)):
        raise DataError(f"{path}: {inner.name} cannot be read. Save it as CSV, .parquet or .xlsx, not in an archive.")
    usual = "\t" if any(ending.lower() in TABS for ending in inner.suffixes) else ","
    return CSVFile(path, replace(dialect, separator=separator or usual))


@dataclass
class Rows:
    """Some columns of files, as chunks that can be gone through several times; held in memory if they are few.

    Attributes:
        files: the files.
        numbers: columns of numbers.
        texts: columns of texts.
        few: hold them.
    """

    files: Sequence[TableFile]
    numbers: tuple[str, ...]
    texts: tuple[str, ...]
    few: bool = False
    _held: list[Chunk] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, files: Sequence[TableFile], columns: Columns, targets: Sequence[Target], count: int) -> Rows:
        """The columns of inputs and targets in `count` rows."""
        numbers = [*columns.numbers, *(target.column for target in targets if target.numeric)]
        texts = [*columns.categories, *(target.column for target in targets if not target.numeric)]
        few = count * (len(numbers) + len(texts)) <= reading.CELLS
        return cls(files, tuple(dict.fromkeys(numbers)), tuple(dict.fromkeys(texts)), few)

    def __iter__(self) -> Iterator[Chunk]:
        if not self.few:
            return self._read()
        self._held = self._held or list(self._read())
        return iter(self._held)

    def _read(self) -> Iterator[Chunk]:
        for file in self.files:
            yield from chunks(file, self.numbers, self.texts)


def _there(name: str, root: str | Path | None) -> Path:
    places = [Path(name).expanduser(), resolve_root(root) / name]
    for place in places:
        if place.exists():
            return place
    raise DataError(
        f"{places[0].absolute()} does not exist, nor does {places[1].absolute()}. `path` is found from the folder in "
        f"which the command runs, or under `root` or {ROOT_VARIABLE}."
    )


def _of_folder(folder: Path) -> tuple[Path, ...]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = {role: [path for path in files if path.name.partition(".")[0].lower() == role] for role in ROLES}
    for role, paths in found.items():
        if len(paths) > 1:
            raise DataError(f"{folder} has {paths[0].name} and {paths[1].name}; one file is to be {role}.")
        if not paths and role != "validation":
            raise DataError(f"{folder} has no file {role}.csv, {role}.tsv or {role}.parquet.")
    return tuple(path for paths in found.values() for path in paths)
