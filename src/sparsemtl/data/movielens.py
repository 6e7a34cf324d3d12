"""MovieLens-100K: what 943 users think of 1,682 films (Harper and Konstan 2015), in either of two layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typing_extensions import Doc

from sparsemtl.data.base import TaskData
from sparsemtl.data.download import ZipArchive
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import Download, ProperFraction, Root, checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.tables.columns import select
from sparsemtl.data.tables.encoding import EncodingOption, InputColumns, tabulate
from sparsemtl.data.tables.formats import Dialect
from sparsemtl.data.tables.parts import draw
from sparsemtl.data.tables.rows import Rows, read_rows
from sparsemtl.data.tables.targets import ClassTarget, NumberTarget
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Natural

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "ml-100k"
OFFICIAL, RECBOLE = ("u.data", "u.user", "u.item"), ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
_RATINGS = 100_000
TRAINING = 0.7
"""Share of the rows that are not for the test."""
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""Genres in the order of the official u.item."""
USER, FILM = "user_id", "item_id"
NUMBERS = ("release_year", *GENRES)
CATEGORIES = ("gender", "occupation")
TARGETS = (ClassTarget("rating", "rating", above=3), NumberTarget("age", "age", scale="unit"))

_ARCHIVE = ZipArchive(
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723", FOLDER
)


def _expected(names: Sequence[str]) -> tuple[Expected, ...]:
    kinds = ("ratings", "users", "films")
    return tuple(Expected(about, (f"{FOLDER}/{name}",), 1) for about, name in zip(kinds, names, strict=True))


FILES = Package(
    "the official files",
    _expected(OFFICIAL),
    source=_ARCHIVE.address,
    licence="research only, no redistribution, no commercial use without permission (GroupLens)",
    get=f"set `download: true` in the configuration (download=True in Python), or unpack the archive as {FOLDER}",
)
_FILES_OF_RECBOLE = Package(
    "the files that RecBole brings along",
    _expected(RECBOLE),
    source="https://pypi.org/project/recbole/1.2.1/",
    licence=FILES.licence,
    get=f"`pip download --no-deps recbole==1.2.1`, and put recbole/dataset_example/ml-100k of it into {FOLDER}",
)


@requires_files((FILES,), (_FILES_OF_RECBOLE,))
@checked
def movielens(
    *,
    root: Root = None,
    download: Download = False,
    identities: Annotated[
        bool,
        Doc(
            "Make user and film inputs as well. A user's age can then be looked up: nearly all users stand in training."
        ),
    ] = False,
    encoding: EncodingOption = "one-hot",
    validation: Annotated[ProperFraction, Doc("Share of the training rows held out, in (0, 1).")] = 0.1,
    seed: Annotated[
        Natural, Doc("Seed of the split into 70 % training, of which validation is taken, and 30 % test.")
    ] = 0,
) -> TaskData:
    """MovieLens-100K: whether a user likes a film, and how old the user is (Harper and Konstan 2015).

    Layout, the official one or RecBole's:

        ml-100k/u.data, u.user, u.item
        ml-100k/ml-100k.inter, ml-100k.user, ml-100k.item

    The tasks are `rating`, whether it is above 3, and `age`, scaled to 0 .. 1 between the youngest and the oldest user
    in training. Inputs are the user's gender and occupation, the film's year and its 19 genres. Needs the extra
    `tables`.

    Raises:
        DataError: if files are absent, damaged or do not fit each other.

    Differences from the paper:
        - PBFS does not say what its inputs are; its scores fit inputs without the user's identity.
    """
    folder = resolve_root(root) / FOLDER
    rows = _read(folder, download=download)
    count = len(rows.frame)
    shares = ((1 - validation) * TRAINING, validation * TRAINING, 1 - TRAINING)
    parts = draw(count, shares, seed)
    categories = (*CATEGORIES, *((USER, FILM) if identities else ()))
    inputs = InputColumns(NUMBERS, categories, missing="indicator", most_categories=2000)  # one film has no year
    notes = counted({"ratings": count}, {"ratings": _RATINGS})
    return tabulate("movielens-100k", rows, parts, inputs, TARGETS, encoding=encoding, notes=notes)


def _read(folder: Path, *, download: bool) -> Rows:
    """Return one row per rating, with the columns of its user and its film."""
    for attempt in range(2):
        for layout, names in ((_official, OFFICIAL), (_recbole, RECBOLE)):
            if all((folder / name).is_file() for name in names):
                return _joined(folder, *layout(folder))
        if not download or attempt:
            break
        _ARCHIVE.fetch(folder, OFFICIAL)
    raise absent("movielens-100k", folder, OFFICIAL)


def _official(folder: Path) -> tuple[Rows, Rows, Rows]:
    ratings = _read_file(folder / "u.data", "\t", (USER, FILM, "rating", "timestamp"))
    users = _read_file(folder / "u.user", "|", (USER, "age", "gender", "occupation", "zip_code"))
    films = _read_file(folder / "u.item", "|", (FILM, "title", "date", "video", "address", *GENRES))
    films.frame["release_year"] = films.frame["title"].str.extract(r"\((\d{4})\)\s*$", expand=False)
    return ratings, users, films


def _recbole(folder: Path) -> tuple[Rows, Rows, Rows]:
    ratings, users, films = (_read_file(folder / name, "\t") for name in RECBOLE)
    for rows in (ratings, users, films):  # the header says the type of every column behind a colon
        rows.frame.columns = rows.frame.columns.str.partition(":").get_level_values(0)
    if "class" not in films.frame:
        raise DataError(f"{films.path} has no column class, which says a film's genres.")
    films.frame["release_year"] = films.frame["release_year"].str.extract(r"^(\d{4})$", expand=False)  # two have none
    genres = films.frame["class"].fillna("").str.split()
    for genre in GENRES:
        films.frame[genre] = genres.map(lambda of, genre=genre: float(genre in of))
    return ratings, users, films


def _read_file(path: Path, separator: str, header: tuple[str, ...] | None = None) -> Rows:
    text_encoding = "latin-1" if header else "utf-8"
    return read_rows([path], Dialect(separator, text_encoding=text_encoding, missing_values=("",), header=header), None)


def _joined(folder: Path, ratings: Rows, users: Rows, films: Rows) -> Rows:
    dialect = Dialect(missing_values=("",))
    joined = select(ratings, dialect, ["rating"], [USER, FILM])
    users = select(users, dialect, ["age"], [USER, *CATEGORIES])
    films = select(films, dialect, NUMBERS, [FILM])
    for key, of, kind in ((USER, users, "user"), (FILM, films, "film")):
        known: pd.Series[str] = of.frame[key]
        if (doubled := known.duplicated()).any():
            raise DataError(f"{folder}: {kind} {known[doubled].iloc[0]!r} is listed twice.")
        if (unknown := ~joined.frame[key].isin(known)).any():
            row = int(unknown.to_numpy().argmax())
            found = joined.frame[key].iloc[row]
            raise DataError(f"{folder}: rating {row + 1} is of {kind} {found!r}, which is not listed.")
        frame = joined.frame.merge(of.frame, on=key, how="left", validate="many_to_one")
        joined = Rows(frame, joined.files)
    return joined
