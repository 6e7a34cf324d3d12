from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from table_files import REAL, lay_student

from sparsemtl.data import DATASETS, TaskData
from sparsemtl.data.tables.coded import CodedSplit
from sparsemtl.errors import DataError, ParameterError

CORRELATIONS = {"math": (0.8521, 0.8015, 0.9049), "portuguese": (0.8650, 0.8263, 0.9185)}
"""PBFS, Table 1: of G1 and G2, G1 and G3, G2 and G3."""


def student(root: Path, **options: Any) -> TaskData:
    return DATASETS.build("student", root=root, **options)


def parts(data: TaskData) -> list[CodedSplit]:
    found = [data.train, data.validation, data.test]
    assert all(isinstance(part, CodedSplit) for part in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("subject", ["math", "portuguese"])
def test_grades_are_twentieths_and_no_inputs(tmp_path: Path, subject: str) -> None:
    rows = lay_student(tmp_path)[subject]
    data = student(tmp_path, subject=subject)
    assert [len(part) for part in parts(data)] == [18, 6, 6]
    for part in parts(data):
        for place, name in enumerate(("G1", "G2", "G3"), start=-3):
            expected = [int(rows[row][place]) / 20 for row in part.rows.tolist()]
            assert part.load().targets[name].tolist() == pytest.approx(expected)
    seen = [rows[row] for row in parts(data)[0].rows.tolist()]
    assert data.input_shape == (13 + sum(len({row[column] for row in seen}) for column in range(13, 30)),)


def test_the_note_says_the_subject_the_split_and_what_is_not_whole(tmp_path: Path) -> None:
    lay_student(tmp_path)
    notes = student(tmp_path, subject="portuguese", seed=4).notes
    assert notes[:2] == (
        "portuguese: 60 % training, 20 % validation, 20 % test at random (seed 4)",
        "not the whole data set: 30 pupils (officially 649)",
    )


def test_what_is_absent_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks student-mat\.csv"):
        student(tmp_path)
    lay_student(tmp_path)
    path = tmp_path / "student/student-mat.csv"
    text = path.read_text()
    path.write_text(text.replace(";G2;", ";G4;"))
    with pytest.raises(DataError, match=r"unknown column 'G2'\. Did you mean 'G"):
        student(tmp_path)
    lines = text.splitlines()
    lines[5] = "x" + lines[5]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"student-mat\.csv, row 5: column 'age' holds numbers, and here 'x\d'"):
        student(tmp_path)
    with pytest.raises(ParameterError, match="'subject' parameter of student must be one of 'math', 'portuguese'"):
        student(tmp_path, subject="latin")


@pytest.mark.skipif(not (REAL / "student").is_dir(), reason="the official files are not here")
@pytest.mark.parametrize("subject", CORRELATIONS)
def test_the_official_grades_correlate_as_in_the_paper(subject: str) -> None:
    data = student(REAL, subject=subject)
    grades = torch.stack([parts(data)[0].labels[name] for name in ("G1", "G2", "G3")]).double()
    assert sum(len(part) for part in parts(data)) == grades.shape[1] == {"math": 395, "portuguese": 649}[subject]
    found = torch.corrcoef(grades)
    assert [found[0, 1], found[0, 2], found[1, 2]] == pytest.approx(CORRELATIONS[subject], abs=1.5e-4)
    assert not any("not the whole data set" in note for note in data.notes)
