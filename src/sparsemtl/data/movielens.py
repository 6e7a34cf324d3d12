"""MovieLens-100K: what 943 users think of 1,682 films (Harper and Konstan 2015), in either of two layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemtl.data.base import TaskData
from sparsemtl.data.download import ZipArchive
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import ProperFraction, checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.splitting import partition
from sparsemtl.data.tables.columns import Columns
from sparsemtl.data.tables.csv_file import CSVFile
from sparsemtl.data.tables.parts import assigned, random_note
from sparsemtl.data.tables.reading import Dialect, as_chunk
from sparsemtl.data.tables.tabulate import Encoding, tabulate
from sparsemtl.data.tables.targets import Above, Value
from sparsemtl.errors import DataError
from sparsemtl.registry.parameters import Natural

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "ml-100k"
OFFICIAL, RECBOLE = ("u.data", "u.user", "u.item"), ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
RATINGS = 100_000
TRAINING = 0.7
"""Share of the rows that are not for the test."""
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""In the order of the official u.item."""
USER, FILM = "user_id", "item_id"
NUMBERS = ("release_year", *GENRES)
CATEGORIES = ("gender", "occupation")
TARGETS = (Above("rating", "rating", limit=3), Value("age", "age", scale="unit"))

ARCHIVE = ZipArchive(
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723", FOLDER
)
FILES = Package(
    "the official files",
    tuple(
        Expected(about, (f"{FOLDER}/{name}",), 1)
        for about, name in zip(("ratings", "users", "films"), OFFICIAL, strict=True)
    ),
    source=ARCHIVE.address,
    licence="research only, no redistribution, no commercial use without permission (GroupLens)",
    get=f"set `download: true` in the configuration (download=True in Python), or unpack the archive as {FOLDER}",
)
OF_RECBOLE = Package(
    "the files that RecBole brings along",
    tuple(
        Expected(about, (f"{FOLDER}/{name}",), 1)
        for about, name in zip(("ratings", "users", "films"), RECBOLE, strict=True)
    ),
    source="https://pypi.org/project/recbole/1.2.1/",
    licence=FILES.licence,
    get=f"`pip download --no-deps recbole==1.2.1`, and put recbole/dataset_example/ml-100k of it into {FOLDER}",
)


@requires_files((FILES,), (OF_RECBOLE,))
@checked
def movielens(
    *,
    root: str | Path | None = None,
    download: bool = False,
    identities: bool = False,
    encoding: Encoding = "one-hot",
    validation: ProperFraction = 0.1,
    seed: Natural = 0,
) -> TaskData:
    """MovieLens-100K: whether a user likes a film, and how old the user is (Harper and Konstan 2015).

    Layout, the official one or RecBole's:

        ml-100k/u.data, u.user, u.item
        ml-100k/ml-100k.inter, ml-100k.user, ml-100k.item

    The tasks are `rating`, whether it is above 3, and `age`, scaled to 0 .. 1 between the youngest and the oldest user
    in training. Inputs are the user's gender and occupation, the film's year and its 19 genres. Needs the extra
    `tables`.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        download: get the official files if there are none.
        identities: user and film are inputs as well. A user's age can then be looked up, for training rows tell it of
            nearly all users.
        encoding: of categories: a column for each (one-hot), or vectors that the network learns (embedding).
        validation: share of the training rows held out, in (0, 1).
        seed: of the split into 70 % training, of which validation is taken, and 30 % test.

    Raises:
        DataError: if files are absent, damaged or do not fit each other.

    Differences from the paper:
        - PBFS does not say what its inputs are; its scores fit inputs without the user's identity.
    """
    place = resolve_root(root) / FOLDER
    read, names = _layout(place, download=download)
    frame = _joined(place, *read(place))
    count = len(frame)
    shares = ((1 - validation) * TRAINING, validation * TRAINING, 1 - TRAINING)
    categories = (*CATEGORIES, *((USER, FILM) if identities else ()))
    return tabulate(
        [as_chunk(frame, (*NUMBERS, "rating", "age"), categories, CSVFile(place / names[0]))],
        assigned(count, partition(count, shares, seed=seed)),
        Columns(NUMBERS, categories),
        TARGETS,
        missing="indicator",  # one film has no year
        most_categories=2000,
        notes=(random_note(shares, seed), *counted({"ratings": count}, {"ratings": RATINGS})),
    ).data("movielens-100k", encoding)


Read = Callable[[Path], "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]"]
"""A folder -> ratings, users and films."""


def _layout(place: Path, *, download: bool) -> tuple[Read, Sequence[str]]:
    """What reads the files that are there, and their names."""
    layouts: list[tuple[Read, Sequence[str]]] = [(_official, OFFICIAL), (_recbole, RECBOLE)]
    for attempt in range(2):
        for read, names in layouts:
            if all((place / name).is_file() for name in names):
                return read, names
        if not download or attempt:
            break
        ARCHIVE.fetch(place, OFFICIAL)
    raise absent("movielens-100k", place, OFFICIAL)


def _official(place: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings = _read(place / "u.data", "\t", (USER, FILM, "rating", "timestamp"))
    users = _read(place / "u.user", "|", (USER, "age", "gender", "occupation", "zip_code"))
    films = _read(place / "u.item", "|", (FILM, "title", "date", "video", "address", *GENRES))
    films["release_year"] = films["title"].str.extract(r"\((\d{4})\)\s*$", expand=False)
    return ratings, users, films


def _recbole(place: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings, users, films = (_typed(place / name) for name in RECBOLE)
    if "class" not in films:
        raise DataError(f"{place / RECBOLE[2]} has no column class, which says a film's genres.")
    films["release_year"] = films["release_year"].str.extract(r"^(\d{4})$", expand=False)  # two films have none
    genres = films["class"].fillna("").str.split()
    for genre in GENRES:
        films[genre] = genres.map(lambda of, genre=genre: genre in of)
    return ratings, users, films


def _typed(path: Path) -> pd.DataFrame:
    """A file whose header says the type of every column behind a colon, which is left out here."""
    frame = _read(path, "\t", None)
    return frame.rename(columns=lambda name: str(name).partition(":")[0])


def _read(path: Path, separator: str, header: tuple[str, ...] | None) -> pd.DataFrame:
    latin = Dialect(separator, text_encoding="latin-1" if header else "utf-8", missing_values=("",), header=header)
    return CSVFile(path, latin).whole()


def _joined(place: Path, ratings: pd.DataFrame, users: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """One row a rating, with what is known of its user and its film."""
    frame = ratings
    for key, of, what in ((USER, users, "user"), (FILM, films, "film")):
        _check_key(place, of, key, what)
        unknown = ~frame[key].isin(of[key])
        if unknown.any():
            row = int(unknown.to_numpy().argmax())
            raise DataError(f"{place}: rating {row + 1} is of {what} {frame[key].iloc[row]!r}, which is not listed.")
        frame = frame.merge(of, on=key, how="left", validate="many_to_one")
    return _as_numbers(place, frame, (*NUMBERS, "rating", "age"))


def _check_key(place: Path, of: pd.DataFrame, key: str, what: str) -> None:
    doubled = of[key].duplicated()
    if doubled.any():
        raise DataError(f"{place}: {what} {of[key][doubled].iloc[0]!r} is listed twice.")


def _as_numbers(place: Path, frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    import pandas

    numbers: dict[str, Any] = {}
    for name in names:
        if name not in frame:
            raise DataError(f"{place}: no file has a column {name!r}.")
        numbers[name] = pandas.to_numeric(frame[name], errors="coerce")
        wrong = numbers[name].isna() & frame[name].notna()
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DataError(f"{place}: rating {row + 1}: {name} is {frame[name].iloc[row]!r}, which is no number.")
    return frame.assign(**numbers)
