"""Tiny tables in the layouts of the official ones, made up on the spot."""

from __future__ import annotations

import csv
import gzip
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from sparsemtl.data.census import HEADER, INCOME, MARITAL, NUMBERS
from sparsemtl.data.movielens import GENRES
from sparsemtl.data.student import CATEGORIES as PUPILS_CATEGORIES
from sparsemtl.data.student import NAMES as SUBJECTS
from sparsemtl.data.student import NUMBERS as PUPILS_NUMBERS

REAL = Path(os.environ.get("SPARSEMTL_DATA") or "/work/shared/data")
"""The official files, where they are."""
OCCUPATIONS = ("student", "writer", "none")


def write(path: Path, rows: Iterable[Sequence[Any]], separator: str = ",", text_encoding: str = "utf-8") -> Path:
    """Write rows, the header first, as a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=text_encoding, newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)
    return path


def person(draw: random.Random) -> dict[str, str]:
    """A row of Census-Income."""
    row = {name: draw.choice(["Not in universe", "?", "NA", "Private"]) for name in HEADER}
    row |= {name: str(draw.randrange(60)) for name in NUMBERS}
    row[MARITAL] = draw.choice(["Never married", "Divorced", "Widowed"])
    row[INCOME] = draw.choice(["- 50000.", "- 50000.", "50000+."])
    return row


def lay_census(root: Path, *, train: int = 0, test: int = 60, gzipped: bool = True) -> list[dict[str, str]]:
    """Write the test file, and the training file if it gets rows; all rows are given back, those for training first."""
    draw = random.Random(5)
    laid = []
    for name, count in (("census-income.data", train), ("census-income.test", test)):
        rows = [person(draw) for _ in range(count)]
        text = "".join(", ".join(row.values()) + "\n" for row in rows).encode()
        path = root / "census-income" / (f"{name}.gz" if gzipped else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if rows:
            path.write_bytes(gzip.compress(text, 1) if gzipped else text)
        laid += rows
    return laid


def lay_student(root: Path, count: int = 30) -> dict[str, list[list[str]]]:
    """Write both tables; the grades of pupil i are i, i + 1 and i + 2, modulo 21."""
    draw = random.Random(6)
    laid = {}
    for subject, name in SUBJECTS.items():
        rows: list[list[str]] = [
            [
                *(str(draw.randrange(5)) for _ in PUPILS_NUMBERS),
                *(draw.choice(["yes", "no", "other"]) for _ in PUPILS_CATEGORIES),
                *(str((number + period) % 21) for period in range(3)),
            ]
            for number in range(count)
        ]
        write(root / "student" / name, [(*PUPILS_NUMBERS, *PUPILS_CATEGORIES, "G1", "G2", "G3"), *rows], ";")
        laid[subject] = rows
    return laid


def lay_movielens(root: Path, layout: Literal["official", "recbole"] = "official", count: int = 80) -> list[list[Any]]:
    """Write ratings of 8 users and 6 films, the last of them without a year.

    Returns:
        for every rating: user, film, rating, the user's age, gender and occupation, the film's year and genres.
    """
    draw = random.Random(7)
    users = [[str(n), 20 + 5 * n, draw.choice("MF"), draw.choice(OCCUPATIONS), "94043"] for n in range(1, 9)]
    films = [[str(n), 1980 + n if n < 6 else None, sorted(draw.sample(GENRES[1:], 3))] for n in range(1, 7)]
    ratings = [[draw.choice(users)[0], draw.choice(films)[0], draw.randrange(1, 6), 880000000] for _ in range(count)]
    (_official if layout == "official" else _recbole)(root / "ml-100k", ratings, users, films)
    by_user, by_film = {user[0]: user for user in users}, {film[0]: film for film in films}
    return [[*rating[:3], *by_user[rating[0]][1:4], *by_film[rating[1]][1:]] for rating in ratings]


def _official(place: Path, ratings: list[Any], users: list[Any], films: list[Any]) -> None:
    write(place / "u.data", ratings, "\t")
    write(place / "u.user", users, "|")
    rows = [
        [number, f"Café {number} ({year})" if year else "unknown", "", "", "", *(int(g in genres) for g in GENRES)]
        for number, year, genres in films
    ]
    write(place / "u.item", rows, "|", "latin-1")


def _recbole(place: Path, ratings: list[Any], users: list[Any], films: list[Any]) -> None:
    write(
        place / "ml-100k.inter",
        [("user_id:token", "item_id:token", "rating:float", "timestamp:float"), *ratings],
        "\t",
    )
    write(
        place / "ml-100k.user",
        [("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"), *users],
        "\t",
    )
    header = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
    rows = [[number, f"Café {number}", year or "unkonwn", " ".join(genres)] for number, year, genres in films]
    write(place / "ml-100k.item", [header, *rows], "\t")
