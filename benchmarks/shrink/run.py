"""Small networks of trained ones: quality against multiply-adds, beside other ways to the same size.

    python benchmarks/shrink/run.py rooms --out RUNS/shrink --macs 0.3 0.15 0.08
    python benchmarks/shrink/run.py rooms --out RUNS/shrink --rows shrink --seeds 0

PROBLEM is the name of a file in this folder. Per seed a dense network is trained for E epochs (its configuration). The
rows are trained for 2 E epochs in total:

- `longer`: the dense network, trained on for E epochs.
- `shrink`: the dense network, shrunk to the budget in E epochs, as `sparsemtl shrink` does it by default;
  `shrink-teacher`: the same with the dense network's outputs as soft targets, `shrink-taylor`: the same without the
  penalty.
- `narrow`: a dense network of the width whose multiply-adds are nearest to the budget, from random weights.
- `group-lasso`: `sharing: group-lasso` from random weights, with the `target_sparsity` of `LASSO`. Its heads are whole,
  so that it cannot reach the smaller budgets.
- `pruning`: `sharing: pruning` from random weights, otherwise as `shrink`; dense for the first fifth of the epochs, at
  the budget after three fifths. `pruning-short`: the same in E epochs in total, as many as the dense network had.
- `torch-pruning`: the dense network, pruned by Torch-Pruning (`pip install torch-pruning`; group Taylor importance,
  global, in 60 rounds on 512 samples in all) to the budget, then fine-tuned for E epochs.

Runs that are finished are not trained again. A row of a seed is added to the record
`benchmarks/results/records/shrink/PROBLEM.csv` as soon as it is finished; commit it. The tables have all lines of the
record; `--table` prints them and trains nothing.

The table has per row the multiply-adds of the compacted network, all
tasks together, as a fraction of the dense network's; the change of every task's primary metric on test data against the
dense network of the seed, in per cent, positive is better, mean and standard deviation over the seeds; and the 95 %
t-interval of the mean over the tasks. A second table compares `shrink` with the other rows of its budget.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats
from torch import nn

import sparsemtl as sm
from sparsemtl import load_run
from sparsemtl.cli.shrinking import shrunk_config
from sparsemtl.networks.model import MultiTaskModel, first_group
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import merge
from sparsemtl.runs.config import check
from sparsemtl.runs.config_file import read_config
from sparsemtl.runs.run import run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.batches import as_group
from sparsemtl.training.shrinking.shrink import PER_READER, STRENGTH, TEACHER_WEIGHT, reach_at
from sparsemtl.views.tables import Table

sys.path.append(str(Path(__file__).parents[1]))

import records

WIDTHS: dict[str, Callable[[int], dict[str, Any]]] = {
    "rooms": lambda n: {"encoder": {"width": n}},
    "table": lambda n: {"encoder": {"hidden": [n, n]}},
    "text": lambda n: {"encoder": {"config": {"hidden_size": 4 * n, "intermediate_size": 8 * n}}},
    "vit": lambda n: {"encoder": {"width": 4 * n}},
}
"""Problem -> changes of its configuration that make the network as wide as a number says."""

LASSO = {0.3: 0.5, 0.15: 0.7}
"""Budget -> fraction of the groups that group lasso removes."""

ROWS = (
    "longer",
    "shrink",
    "shrink-teacher",
    "shrink-taylor",
    "pruning",
    "pruning-short",
    "narrow",
    "group-lasso",
    "torch-pruning",
)
_PRUNING_ROUNDS, _PRUNING_SAMPLES = 60, 512
_CHANGE = "change/"
Found = dict[tuple[str, float | None], dict[int, tuple[dict[str, float], float]]]
"""(row, budget) -> seed -> change of every task in per cent, and cost as a fraction of the dense network's."""


class Problem:
    """Runs of a problem and a seed.

    Args:
        name: name of the file of its configuration.
        seed: the seed.
        out: folder of all runs.
    """

    def __init__(self, name: str, seed: int, out: Path) -> None:
        self.name, self.seed, self.folder = name, seed, out / name
        self.config = read_config(Path(__file__).parent / f"{name}.yaml", [f"seed={seed}"])
        self.epochs = self.config["training"]["epochs"]
        self.built: dict[str, Any] = {}
        self.dense = self.train("dense", self.config)

    def changed(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with changes."""
        return check(merge(self.config, changes))

    def train(self, row: str, config: Mapping[str, Any]) -> Path:
        """Train a run, or go on with it, unless it is finished; return its folder."""
        own = RunFolder(self.folder / f"{row}-{self.seed}")
        if not own.finished:
            run(config, own.path, resume=own.begun, progress=False, built=self.built)
        return own.path

    def row(self, row: str, macs: float | None) -> Path:
        """Train the run of a row and a budget; return its folder."""
        name = row if macs is None else f"{row}-{macs:g}"
        if row == "longer":
            return self.train(name, self.changed({"start_from": str(self.dense)}))
        assert macs is not None
        if row == "narrow":
            return self.train(name, self._narrow(macs))
        if row.startswith("pruning"):
            return self.train(name, self._pruning(macs, self.epochs if row == "pruning-short" else 2 * self.epochs))
        if row == "group-lasso":
            sharing = {"name": row, "target_sparsity": LASSO[macs], "reach_at": 4 * self.epochs // 3}
            return self.train(name, self.changed({"sharing": sharing, "training": {"epochs": 2 * self.epochs}}))
        if row == "torch-pruning":
            return self._torch_pruning(name, macs)
        return self.train(name, self._shrunk(row, macs))

    def _shrunk(self, row: str, macs: float) -> dict[str, Any]:
        pruning = {"macs": macs, "reach_at": reach_at(self.epochs), "per_reader": PER_READER, "lambda": STRENGTH}
        if row == "shrink-taylor":
            pruning["lambda"] = 0.0
        weight = 1.0 if row == "shrink-teacher" else TEACHER_WEIGHT
        return shrunk_config(load_run(self.dense), self.dense, pruning, self.epochs, teacher_weight=weight)

    def _pruning(self, macs: float, epochs: int) -> dict[str, Any]:
        sharing = {"name": "pruning", "macs": macs, "warmup": round(0.2 * epochs), "reach_at": round(0.6 * epochs)}
        options = {"per_reader": PER_READER, "lambda": STRENGTH}
        return self.changed({"sharing": {**sharing, **options}, "training": {"epochs": epochs}})

    def _narrow(self, macs: float) -> dict[str, Any]:
        """Return the configuration of the width whose multiply-adds are nearest to the budget."""
        target = macs * self.cost("dense")
        costs: dict[int, float] = {}
        for width in range(1, 129):
            config = self.changed(WIDTHS[self.name](width))
            costs[width] = abs(math.log(self._macs(config) / target))
            if width > 1 and costs[width] > costs[width - 1]:
                break
        best = min(costs, key=lambda width: costs[width])
        return self.changed({**WIDTHS[self.name](best), "training": {"epochs": 2 * self.epochs}})

    def _macs(self, config: Mapping[str, Any]) -> float:
        """Return the multiply-adds of a configuration's model before training."""
        spec = RunSpec(config, self.built)
        model = make_trainer(config, spec.data, None, progress=False).model
        return float(sm.macs(model, first_group(model, spec.loaders()[0]).x[:1]))

    def _torch_pruning(self, name: str, macs: float) -> Path:
        own = RunFolder(self.folder / f"{name}-{self.seed}")
        if own.finished:
            return own.path
        config = self.changed({"start_from": str(self.dense)})
        spec = RunSpec(config, self.built)
        train, validation, test = spec.loaders()
        trainer = make_trainer(config, spec.data, own.path, progress=False)
        prune(trainer.model, train, macs)
        self._note(own.path.name, sm.macs(trainer.model, first_group(trainer.model, train).x[:1]))
        trainer.fit(train, validation, overwrite=True)
        trainer.test(test)
        return own.path

    def _note(self, name: str, macs: float) -> None:
        file = self.folder / "macs.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, name: macs}, indent=1))

    def cost(self, row: str) -> float:
        """Return the multiply-adds of a row's compacted network, all tasks together."""
        name = f"{row}-{self.seed}"
        file = self.folder / "macs.json"
        if name not in (json.loads(file.read_text()) if file.exists() else {}):
            self._note(name, load_run(self.folder / name).plan().best.macs)
        return float(json.loads(file.read_text())[name])


def prune(model: MultiTaskModel, train: Any, macs: float) -> None:
    """Prune a model in place by Torch-Pruning to a fraction of its multiply-adds."""
    import torch_pruning as tp

    model.eval()
    x = first_group(model, train).x[:1]
    last = [[m for m in head.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1] for head in model.heads.values()]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=0.98,
        max_pruning_ratio=0.95,
        iterative_steps=_PRUNING_ROUNDS,
        ignored_layers=last,
        num_heads=_projections(model),
        prune_num_heads=True,
        prune_head_dims=False,
    )
    whole = sm.macs(model, x)
    while sm.macs(model, x) > macs * whole and pruner.current_step < _PRUNING_ROUNDS:
        model.zero_grad()
        seen = 0
        for batch in train:
            group = as_group(batch, model.tasks)
            outputs = model(group.x)
            sum(task.loss(outputs[name], task.labels(group.targets)) for name, task in model.tasks.items()).backward()
            seen += len(group.x)
            if seen * _PRUNING_ROUNDS >= _PRUNING_SAMPLES:
                break
        pruner.step()
    model.zero_grad()


def _projections(model: nn.Module) -> dict[nn.Module, int]:
    """Return projection to queries, keys or values of transformers -> number of heads, for Torch-Pruning."""
    found = {}
    for module in model.modules():
        size = getattr(module, "attention_head_size", getattr(module, "head_dim", None))
        inputs = [part for name, part in module.named_children() if name != "o_proj" and isinstance(part, nn.Linear)]
        if isinstance(size, int):
            found |= {part: part.out_features // size for part in inputs}
    return found


def changes(folder: Path, dense: Path) -> dict[str, float]:
    """Return task -> change of its primary metric on test data in per cent, positive is better."""
    own, before = (json.loads((each / "summary.json").read_text())["tasks"] for each in (folder, dense))
    found = {}
    for task, entry in own.items():
        metric = entry["primary"]
        value, base = entry["test"][metric], before[task]["test"][metric]
        found[task] = 100 * (value - base) / abs(base) * (1 if entry["directions"][metric] else -1)
    return found


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=list(WIDTHS))
    parser.add_argument("--out", type=Path, default=Path("runs/shrink"))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.3, 0.15, 0.08])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to run; all by default")
    parser.add_argument("--table", action="store_true", help="print the tables of the record, without training")
    given = parser.parse_args()
    for seed in [] if given.table else given.seeds:
        problem = Problem(given.problem, seed, given.out.resolve())
        for row, macs in _cells(given.rows, given.macs, given.problem):
            new = line(problem, row, macs)
            records.update(f"shrink/{given.problem}", pd.DataFrame([new]))
            print(new, flush=True)
    found = _found(records.read(f"shrink/{given.problem}"))
    if found:
        print(_quality(found).markdown())
        print(_against(found).markdown())


def line(problem: Problem, row: str, macs: float | None) -> dict[str, Any]:
    """Return the line of a row, a budget and a seed in the record, and train its run unless it is finished."""
    folder = problem.row(row, macs)
    cost = problem.cost(folder.name.removesuffix(f"-{problem.seed}"))
    return {
        "row": row if macs is None else f"{row} {macs:g}",
        "seed": problem.seed,
        "settings": records.fingerprint(RunFolder(folder).read_config()),
        "network": row,
        "budget": macs,
        "cost": cost / problem.cost("dense"),
        **{f"{_CHANGE}{task}": change for task, change in changes(folder, problem.dense).items()},
    }


def _cells(rows: Iterable[str], budgets: Iterable[float], problem: str) -> list[tuple[str, float | None]]:
    """Return the rows with each of their budgets."""
    found: list[tuple[str, float | None]] = [("longer", None)] if "longer" in rows else []
    for macs in sorted(budgets, reverse=True):
        for row in rows:
            if row != "longer" and (row != "group-lasso" or (macs in LASSO and problem == "rooms")):
                found.append((row, macs))
    return found


def _found(record: pd.DataFrame) -> Found:
    """Return the content of a record by network and budget, in the order of `ROWS`, the largest budgets first."""
    tasks = [column for column in record if column.startswith(_CHANGE)]
    found: Found = {}
    for _, entry in record.iterrows():
        macs = None if pd.isna(entry["budget"]) else float(entry["budget"])
        change = {task.removeprefix(_CHANGE): float(entry[task]) for task in tasks}
        found.setdefault((entry["network"], macs), {})[int(entry["seed"])] = change, float(entry["cost"])
    return dict(sorted(found.items(), key=lambda item: (-(item[0][1] or 1), ROWS.index(item[0][0]))))


def _quality(found: Found) -> Table:
    tasks = list(next(iter(next(iter(found.values())).values()))[0])
    lines = []
    for (row, macs), seeds in found.items():
        means = [statistics.mean(change.values()) for change, _ in seeds.values()]
        cells = [_spread([change[task] for change, _ in seeds.values()]) for task in tasks]
        left = statistics.mean(cost for _, cost in seeds.values())
        numbers = ", ".join(map(str, seeds))
        lines.append([row, _name(macs), numbers, f"{left:.1%}", *cells, _spread(means), _interval(means)])
    return Table(["network", "budget", "seeds", "multiply-adds", *tasks, "mean", "95 % interval"], lines)


def _against(found: Found) -> Table:
    lines = []
    for (row, macs), seeds in found.items():
        own = found.get(("shrink", macs), {})
        if row != "shrink" and (both := [seed for seed in own if seed in seeds]):
            ahead = [statistics.mean(own[seed][0].values()) - statistics.mean(seeds[seed][0].values()) for seed in both]
            lines.append([row, _name(macs), ", ".join(map(str, both)), _spread(ahead), _interval(ahead)])
    return Table(["shrink against", "budget", "seeds", "ahead by", "95 % interval"], lines)


def _name(macs: float | None) -> str:
    return "" if macs is None else f"{macs:.0%}"


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):+.2f} ± {spread:.2f}"


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{statistics.mean(values) - half:+.2f} to {statistics.mean(values) + half:+.2f}"


if __name__ == "__main__":
    main()
