"""Student Performance: grades of Portuguese pupils in two subjects (Cortez and Silva 2008)."""

from __future__ import annotations

from typing import Annotated, Literal

from typing_extensions import Doc

from sparsemtl.data.base import TaskData
from sparsemtl.data.images.folders import absent, counted
from sparsemtl.data.options import Root, checked, resolve_root
from sparsemtl.data.requirements import Expected, Package, requires_files
from sparsemtl.data.tables.columns import select
from sparsemtl.data.tables.encoding import EncodingOption, InputColumns, tabulate
from sparsemtl.data.tables.formats import Dialect
from sparsemtl.data.tables.parts import RowParts, draw
from sparsemtl.data.tables.rows import read_rows
from sparsemtl.data.tables.targets import NumberTarget
from sparsemtl.registry.parameters import Natural

Subject = Literal["math", "portuguese"]
FOLDER = "student"
NAMES: dict[Subject, str] = {"math": "student-mat.csv", "portuguese": "student-por.csv"}
OFFICIAL: dict[Subject, int] = {"math": 395, "portuguese": 649}
SHARES = (0.6, 0.2, 0.2)
"""Shares of training, validation and test."""
NUMBERS = (
    *("age", "Medu", "Fedu", "traveltime", "studytime", "failures"),
    *("famrel", "freetime", "goout", "Dalc", "Walc", "health", "absences"),
)
CATEGORIES = (
    *("school", "sex", "address", "famsize", "Pstatus", "Mjob", "Fjob", "reason", "guardian"),
    *("schoolsup", "famsup", "paid", "activities", "nursery", "higher", "internet", "romantic"),
)
GRADES = ("G1", "G2", "G3")
_BEST_GRADE = 20.0

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
    root: Root = None,
    subject: Annotated[Subject, Doc("Subject of the grades.")] = "math",
    encoding: EncodingOption = "one-hot",
    seed: Annotated[Natural, Doc("Seed of the split into 60 % training, 20 % validation, 20 % test.")] = 0,
) -> TaskData:
    """Student: a pupil's grades in the first, second and third period of a subject (Cortez and Silva 2008).

    Layout:

        student/student-mat.csv                       395 pupils of mathematics
        student/student-por.csv                       649 pupils of Portuguese

    Tasks are the regressions `G1`, `G2` and `G3`, grades divided by 20; none is an input of another. Inputs are 13
    numbers, standardised, and 17 categories. Needs the extra `tables`.

    Raises:
        DataError: if the file is absent or damaged.
    """
    path = resolve_root(root) / FOLDER / NAMES[subject]
    if not path.is_file():
        raise absent("student", path.parent, [NAMES[subject]])
    dialect = Dialect(separator=";")
    rows = select(read_rows([path], dialect, CATEGORIES), dialect, (*NUMBERS, *GRADES), CATEGORIES)
    count = len(rows.frame)
    parts = draw(count, SHARES, seed)
    parts = RowParts(parts.of_rows, f"{subject}: {parts.note}")
    targets = [NumberTarget(name, name, factor=_BEST_GRADE) for name in GRADES]
    notes = counted({"pupils": count}, {"pupils": OFFICIAL[subject]})
    return tabulate("student", rows, parts, InputColumns(NUMBERS, CATEGORIES), targets, encoding=encoding, notes=notes)
