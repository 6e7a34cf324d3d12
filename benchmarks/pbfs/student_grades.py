"""Do the earlier grades among the inputs explain the paper's error of 5e-4 on Student Performance?

    python benchmarks/pbfs/student_grades.py DATA

Test error of the final grade over 20, squared, with and without G1 and G2 among the inputs: a random forest and a ridge
regression of scikit-learn, mean and standard deviation over 20 splits, a fifth of the rows for testing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split

from sparsemtl.views.tables import Table

SUBJECTS = {"mat": "Mathematics", "por": "Portuguese"}
INPUTS = {"without G1 and G2": ["G1", "G2", "G3"], "with G1 and G2": ["G3"]}
"""Inputs -> columns that are left out."""
SPLITS = 20


def errors(rows: pd.DataFrame, left_out: list[str]) -> np.ndarray:
    """Return the squared error of both models, (splits, 2)."""
    inputs, grades = pd.get_dummies(rows.drop(columns=left_out)).astype(float), rows["G3"] / 20
    found = []
    for seed in range(SPLITS):
        train, test, known, asked = train_test_split(inputs, grades, test_size=0.2, random_state=seed)
        forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=seed).fit(train, known)
        ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(train, known)
        found.append([np.mean((model.predict(test) - asked) ** 2) for model in (forest, ridge)])
    return np.array(found)


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1]) / "student"
    lines = []
    for subject, name in SUBJECTS.items():
        rows = pd.read_csv(folder / f"student-{subject}.csv", sep=";")
        for inputs, left_out in INPUTS.items():
            found = errors(rows, left_out)
            spread = [f"{mean:.4f} ± {std:.4f}" for mean, std in zip(found.mean(0), found.std(0), strict=True)]
            lines.append([name, inputs, *spread, f"{found.min():.4f}"])
    print(Table(["subject", "inputs", "random forest", "ridge", "best split"], lines).markdown())


if __name__ == "__main__":
    main()
