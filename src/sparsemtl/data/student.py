"""Student Performance: grades of Portuguese pupils in two subjects (Cortez and Silva 2008)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.splitting import partition
from sparsemtl.data.tables.columns import Columns
from sparsemtl.data.tables.csv_file import CSVFile
from sparsemtl.data.tables.parts import assigned, random_note
from sparsemtl.data.tables.reading import Dialect, chunks
from sparsemtl.data.tables.tabulate import Encoding, tabulate
from sparsemtl.data.tables.targets import Value
from sparsemtl.registry.parameters import Natural

Subject = Literal["math", "portuguese"]
FOLDER = "student"
NAMES: dict[Subject, str] = {"math": "student-mat.csv", "portuguese": "student-por.csv"}
OFFICIAL: dict[Subject, int] = {"math": 395, "portuguese": 649}
SHARES = (0.6, 0.2, 0.2)
"""Training, validation and test."""
BEST_GRADE = 20.0
NUMBERS = (
    *("age", "Medu", "Fedu", "traveltime", "studytime", "failures"),
    *("famrel", "freetime", "goout", "Dalc", "Walc", "health", "absences"),
)
CATEGORIES = (
    *("school", "sex", "address", "famsize", "Pstatus", "Mjob", "Fjob", "reason", "guardian"),
    *("schoolsup", "famsup", "paid", "activities", "nursery", "higher", "internet", "romantic"),
)
GRADES = tuple(Value(name, name, factor=BEST_GRADE) for name in ("G1", "G2", "G3"))

FILES = Package(
    "the official tables",
    tuple(Expected(f"pupils of {subject}", (f"{FOLDER}/{name}",), 1) for subject, name in NAMES.items()),
    source="https://archive.ics.uci.edu/static/public/320/student+performance.zip",
    licence="CC BY 4.0 (UCI Machine Learning Repository)",
    get=(
        f"unpack the archive and the student.zip in it, and put {' and '.join(NAMES.values())} into {FOLDER} under "
        "the root"
    ),
)


@requires_files((FILES,))
@checked
def student(
    *,
    root: str | Path | None = None,
    subject: Subject = "math",
    encoding: Encoding = "one-hot",
    seed: Natural = 0,
) -> TaskData:
    """Student: a pupil's grades in the first, second and third period of a subject (Cortez and Silva 2008).

    Layout:

        student/student-mat.csv                       395 pupils of mathematics
        student/student-por.csv                       649 pupils of Portuguese

    Tasks are the regressions `G1`, `G2` and `G3`, grades divided by 20; none is an input of another. Inputs are 13
    numbers, standardised, and 17 categories. Needs the extra `tables`.

    Args:
        root: folder under which data sets lie; SPARSEMTL_DATA, or ./data, by default.
        subject: whose grades.
        encoding: of categories: a column for each (one-hot), or vectors that the network learns (embedding).
        seed: of the split into 60 % training, 20 % validation, 20 % test.

    Raises:
        DataError: if the file is absent or damaged.
    """
    place = resolve_root(root) / FOLDER
    path = place / NAMES[subject]
    if not path.is_file():
        raise absent("student", place, [NAMES[subject]])
    grades = [grade.column for grade in GRADES]
    rows = list(chunks(CSVFile(path, Dialect(separator=";")), [*NUMBERS, *grades], CATEGORIES))
    count = sum(map(len, rows))
    return tabulate(
        rows,
        assigned(count, partition(count, SHARES, seed=seed)),
        Columns(NUMBERS, CATEGORIES),
        GRADES,
        notes=(f"{subject}: {random_note(SHARES, seed)}", *counted({"pupils": count}, {"pupils": OFFICIAL[subject]})),
    ).data("student", encoding)
