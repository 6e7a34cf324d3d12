"""The package is written in plain words: docstrings that start as they should, and one name per thing."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sparsemtl"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

HEADLESS = re.compile(r"(What|How|Which|Whether|Where)\b")
COUNTED = (
    "one|row|line|network|bits?|samples|columns?|backward|forward|set|head|kernel|byte|step|module|vector|pass|loader"
)
EACH = "task|batch|weight|sample|step|epoch|pixel|method|run|layer|row|label|seed|pool|column|channel|expert|file|image"
FOR_PER = re.compile(rf"\b(?:{COUNTED})\s+an?\s+(?:{EACH})\b")
"""A forward pass a task: it must be "per task"."""

RENAMED = {
    "shadow": "swap_tensors",
    "shadowed": "swap_tensors",
    "as_seen": "materialize",
    "undisturbed": "preserve_model_state",
    "undrawn": "fork_rng",
    "evaluating": "eval_mode",
    "Recalibrated": "with_recomputed_batch_norm",
    "Remembered": "FeatureCache",
    "Bank": "ReferenceFeatures",
    "Counterparts": "class_mapping",
    "Plan": "RunSpec",
    "before_of": "pretraining_config",
    "rehearse": "dry_run",
    "Meter": "EpochAverages",
    "write_chosen": "save_best_model",
    "put_back": "restore",
    "chosen_apart": "selects_per_task",
    "settled": "is_selectable",
    "copied_modules": "replicated_modules",
    "Hold": "FreezeOutsideMask",
    "held_outside": "freeze_outside_mask",
    "looks_back": "needs_post_step_losses",
    "look_back": "observe_post_step_losses",
    "semantics": "mask_applies_to",
    "kept_at": "keep_at",
    "renewal": "criterion_for",
    "mortal": "prunable",
    "absorb_constants": "fold_constants",
    "twins": "duplicate_files",
    "wanted_targets": "parse_targets",
    "Survey": "ColumnStats",
    "Gaps": "MissingCounts",
    "Spot": "CellLocation",
    "Kept": "SampleCache",
    "laid_out": "requires_files",
    "target_density": "target_sparsity",
}
"""Name that is not used any more -> name that replaced it."""
ONLY_IN = {"settled": "sharing", "Survey": "data"}
"""Name that means something else in other sub-packages -> sub-package in which it was replaced."""


def definitions(node: ast.AST) -> Iterator[ast.Module | Definition]:
    """A node and what is defined in it; expressions, which are most nodes and define nothing, are passed over."""
    if isinstance(node, (ast.Module, *DEFINITIONS)):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from definitions(child)


@cache
def nodes() -> list[tuple[str, ast.Module | Definition]]:
    """Return all modules and definitions with the place of each."""
    return [
        (f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 1)}", node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in definitions(ast.parse(path.read_text(encoding="utf-8")))
    ]


@cache
def docstrings() -> list[tuple[str, str]]:
    return [(place, text) for place, node in nodes() if (text := ast.get_docstring(node))]


def test_no_docstring_starts_without_a_head() -> None:
    found = [f"{place} {text.splitlines()[0]}" for place, text in docstrings() if HEADLESS.match(text)]
    assert found == [], "start a definition with a noun, a function with a verb"


def test_docstrings_say_per_for_each() -> None:
    found = [f"{place} {match[0]}" for place, text in docstrings() if (match := FOR_PER.search(text))]
    assert found == [], 'write "one bit per weight", not "one bit a weight"'


def test_names_that_were_replaced_are_gone() -> None:
    found = []
    for place, node in nodes():
        names = [node.name] if isinstance(node, DEFINITIONS) else []
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            names += [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        found += [
            f"{place} {name}: use {RENAMED[name]}"
            for name in names
            if name in RENAMED and place.startswith(ONLY_IN.get(name, ""))
        ]
    assert found == []


def test_a_public_name_stands_for_one_class() -> None:
    names = Counter(
        node.name for _, node in nodes() if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_the_rules_catch_what_they_are_for() -> None:
    assert HEADLESS.match("What the methods have in common.")
    assert not HEADLESS.match("Base of methods.")
    assert FOR_PER.search("one bit a weight")
    assert FOR_PER.search("a forward pass a task")
    assert not FOR_PER.search("one bit per weight")
