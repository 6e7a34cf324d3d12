"""Rules of `sparsemtl advise`: from what was measured of the tasks to what to try first, with the evidence.

The rules come from controlled experiments with small networks (`benchmarks/pays/` has their settings, the page "Will it
pay for my tasks?" their figures). Each rule reads `TaskFacts`, and yields suggestions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from sparsemtl.runs.changes import merge
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.training.choosing.affinity import TaskAffinity
from sparsemtl.views.tables import Table, Value, text_of

Evidence = Literal["fair", "thin", "none"]
"""`fair`: 5 seeds or more, tuned alike, intervals without 0. `thin`: less, or other data. `none`: a guess."""
_FEW_ROWS = 0.5
"""Training rows per shared weight below which data are few: measured at 0.06 and 0.24 (few) and 0.96 (many)."""
_NARROW = 1000
"""Shared weights below which a network is small: with 224, keep 0.1 left it untrainable; with 1,664, it did not."""
_MEASURED = 20_000
"""Shared weights up to which there were experiments."""


@dataclass(frozen=True)
class TaskFacts:
    """Measured facts of a configuration's tasks.

    Attributes:
        config: the complete configuration.
        rows: task -> labelled training samples.
        weights: number of shared weights that masks cover.
        affinity: affinity of the tasks after a brief training; None of a single task.
        scales: note on losses of unlike scale; "" if they are alike, or a balancer weighs them.
        vectors: inputs are vectors, such as rows of a table, and the encoder is a perceptron.
        epochs: epochs of the brief training.
        seconds: time of training and measuring.
    """

    config: Mapping[str, Any]
    rows: Mapping[str, int]
    weights: int
    affinity: TaskAffinity | None
    scales: str
    vectors: bool
    epochs: int
    seconds: float

    @property
    def rows_per_weight(self) -> float:
        """Labelled training samples of the task with the fewest, per shared weight."""
        return min(self.rows.values()) / self.weights

    @property
    def few_rows(self) -> bool:
        """True if there are few rows per weight."""
        return self.rows_per_weight < _FEW_ROWS

    @cached_property
    def groups(self) -> list[list[str]]:
        """Groups of tasks by overlap."""
        return [list(self.rows)] if self.affinity is None else self.affinity.groups()


@dataclass(frozen=True)
class Suggestion:
    """Something to try.

    Attributes:
        title: what to try.
        reason: why, with figures.
        evidence: strength of the evidence.
        changes: changes of the configuration.
    """

    title: str
    reason: str
    evidence: Evidence
    changes: Mapping[str, Any] = field(repr=False)

    @property
    def yaml(self) -> str:
        """The changes as lines of YAML."""
        return dump_yaml(self.changes)


@dataclass(frozen=True)
class Advice:
    """Result of `advise`; `str(advice)` shows all of it.

    Attributes:
        facts: what was measured.
        suggestions: what to try, the first one first; at least one.
        cautions: what the advice does not rest on.

    Examples:
        >>> advice = advise({"data": "digits", "encoder": "cnn"})                     # doctest: +SKIP
        >>> print(advice.suggestions[0].yaml)                                       # doctest: +SKIP
        >>> runs.run(advice.config(), "runs/first")                                 # doctest: +SKIP
    """

    facts: TaskFacts
    suggestions: tuple[Suggestion, ...]
    cautions: tuple[str, ...]

    def config(self, number: int = 0) -> dict[str, Any]:
        """Return the configuration with the changes of a suggestion, counted from 0."""
        base = {key: value for key, value in self.facts.config.items() if key not in ("auto", "name", "label")}
        return merge(base, self.suggestions[number].changes)

    def tables(self) -> list[Table]:
        """Return what was measured as tables."""
        facts, affinity = self.facts, self.facts.affinity
        rows: list[list[Value]] = [
            [task, count, count / facts.weights, affinity.losses[task] if affinity else None]
            for task, count in facts.rows.items()
        ]
        head = ["task", "training samples", "per shared weight", "mean loss"]
        title = f"The plain shared network after {facts.epochs} epochs: {facts.weights:,} shared weights"
        return [Table(head, rows, title), *(affinity.tables() if affinity else [])]

    def record(self) -> dict[str, Any]:
        """Return the advice as plain values, for JSON."""
        facts, affinity = self.facts, self.facts.affinity
        measured = {
            "epochs": facts.epochs,
            "seconds": facts.seconds,
            "weights": facts.weights,
            "rows": dict(facts.rows),
            "rows_per_weight": facts.rows_per_weight,
            "scales": facts.scales,
            "affinity": affinity.record() if affinity else None,
        }
        suggestions = [{**asdict(one), "yaml": one.yaml} for one in self.suggestions]
        return {"measured": measured, "suggestions": suggestions, "cautions": list(self.cautions)}

    def __str__(self) -> str:
        texts = [
            f"{number}. {one.title} (evidence: {one.evidence})\n{one.reason}\n\n{one.yaml}"
            for number, one in enumerate(self.suggestions, start=1)
        ]
        return "\n\n".join([text_of(self.tables()), *texts, *(f"caution: {text}" for text in self.cautions)])


def advice_of(facts: TaskFacts) -> Advice:
    """Return the advice that the rules give for measured facts."""
    found = [
        one for rule in (_scales, _plain, _decay, _auto, _specific, _groups, _apart, _small) for one in rule(facts)
    ]
    return Advice(facts, tuple(found), tuple(_cautions(facts)))


def _scales(facts: TaskFacts) -> Iterator[Suggestion]:
    if facts.scales:
        yield Suggestion(
            "Weigh the losses",
            f"{facts.scales[0].upper()}{facts.scales[1:]} Five unrelated tasks whose losses differed 30 times lost "
            "7.5 % in a shared network against networks of their own; how much of it weights win back has not been "
            "measured here.",
            "thin",
            {"balancing": {"name": "uncertainty"}},
        )


def _plain(facts: TaskFacts) -> Iterator[Suggestion]:
    if len(facts.rows) > 1 and len(facts.groups) == 1 and not facts.few_rows:
        yield Suggestion(
            "Keep the plain shared network",
            f"The tasks use the same weights, and there are {facts.rows_per_weight:.2g} rows per weight. Four "
            "related regressions with 1,600 rows (0.96 per weight): error 2.7 shared, 4.2 in networks of their own; no "
            "masks were clearly better (2.6 and 2.9), and plain Fisher masks were worse (+0.3 ± 0.2).",
            "fair" if facts.vectors else "thin",
            {"architecture": {"name": "shared-bottom"}, "sharing": {"name": "dense"}},
        )


def _decay(facts: TaskFacts) -> Iterator[Suggestion]:
    optimizer = facts.config["optimizer"]
    measured = optimizer["name"] in ("adam", "adamw")
    decay = 0.3 if measured else 0.001
    enough = optimizer["name"] != "adam" and optimizer.get("weight_decay", 0.0) >= decay
    if (facts.few_rows or len(facts.groups) > 1) and not enough:
        named = {"name": "adamw", "lr": optimizer["lr"]} if measured else {}
        yield Suggestion(
            "More weight decay",
            f"There are {facts.rows_per_weight:.2g} rows per shared weight, and the cheapest remedy is decay: one "
            "training. Tuned by validation, weight decay (AdamW) or dropout took 4.3 to 7.7 points of normalised error "
            "off a plain shared network in all five settings with 100 or 400 rows, 2.3 with 1,600 rows and unrelated "
            "tasks, and 1.9 and 2.8 % of error on two image sets. Masks alone bring about as much, not more. Try ten "
            "times the value as well.",
            "fair" if measured else "thin",
            {"optimizer": {**named, "weight_decay": decay}},
        )


def _auto(facts: TaskFacts) -> Iterator[Suggestion]:
    if len(facts.rows) > 1 and (facts.few_rows or len(facts.groups) > 1):
        gain = (
            "On vectors, such a choice among complete trainings with tuned learning rates beat the one among dense "
            "networks by 0.4 to 4.7 points of normalised error in 7 of 8 settings, the more the fewer the rows."
            if facts.vectors
            else "On two image sets, such a choice among complete trainings with tuned learning rates was level with "
            "the one among dense networks (+0.1 and 0.0 %)."
        )
        yield Suggestion(
            "Let validation choose per task",
            "`sharing: auto` trains dense, single-task and masked candidates, at the cost of four trainings, and gives "
            f"each task the one that is best for it. {gain} `auto` itself beat the best of 21 dense configurations in "
            "three settings of vectors (19.0 against 20.5 with 100 rows, 10.3 against 12.4 with 400), and was level "
            "in two; in the smallest network, of 224 shared weights, it was worse in three of four seeds.",
            "thin",  # fair for the choice, not for `auto`
            {"sharing": {"name": "auto"}},
        )


def _specific(facts: TaskFacts) -> Iterator[Suggestion]:
    if len(facts.groups) > 1:
        keep = 0.1 if facts.few_rows and facts.weights >= _NARROW else 0.3
        images = "" if facts.vectors else " On images no masks won: +1.9 ± 0.7 % of error with data of each task's own."
        yield Suggestion(
            "Masks of task-specific weights",
            f"The tasks fall into {len(facts.groups)} groups by the weights that they use. Between unrelated "
            "regressions such masks took 11.3 ± 3.5 (100 rows), 4.3 ± 1.2 (400 rows, width 8) and 2.2 ± 0.5 points "
            "(1,600 rows) off a plain shared network: level with networks of their own or better, in one network. "
            "Tuned weight decay on the dense network was level with them. Masks want about three times the learning "
            f"rate.{images}",
            "fair" if facts.vectors else "thin",
            {
                "sharing": {"name": "fisher", "criterion": "specific", "keep": keep, "freeze_masks": 0.33},
                "optimizer": {"lr": 3 * facts.config["optimizer"]["lr"]},
            },
        )


def _groups(facts: TaskFacts) -> Iterator[Suggestion]:
    if 1 < len(facts.groups) < len(facts.rows):
        yield Suggestion(
            "One encoder per group of tasks",
            f"Groups by overlap: {'; '.join(' + '.join(group) for group in facts.groups)}. The overlap is noisy: "
            "compare with the plain shared network. What such groups gain has not been measured here.",
            "none",
            {
                "architecture": {"name": "task-groups", "groups": facts.groups},
                "sharing": {"name": "dense"},
            },
        )


def _apart(facts: TaskFacts) -> Iterator[Suggestion]:
    if len(facts.groups) > 1 and not facts.few_rows:
        yield Suggestion(
            "Networks of their own",
            "With many rows per weight and unrelated tasks a network per task is hard to beat: error 4.2 against 5.9 "
            "in a plain shared network of the same width (1,600 rows), and 3.1 with networks of half the width.",
            "fair" if facts.vectors else "thin",
            {"architecture": {"name": "single-task"}, "sharing": {"name": "dense"}},
        )


def _small(facts: TaskFacts) -> Iterator[Suggestion]:
    epochs = facts.config["training"]["epochs"]
    warmup = round(0.2 * epochs)
    pruning = {"name": "pruning", "macs": 0.15, "warmup": warmup, "reach_at": max(round(0.6 * epochs), warmup + 1)}
    yield Suggestion(
        "Only if you want a smaller network: prune it while it trains",
        "Channels, heads and neurons go until 15 % of the multiply-adds are left. On rendered rooms such networks were "
        "level with the dense one (+0.3 ± 0.1 % and +0.3 ± 0.3 % in two settings, 3 seeds each), where a narrow dense "
        "network lost 2.5 ± 1.0 % with 33 %. It is not meant to make tasks better. The strength `lambda` is for Adam "
        "and related optimizers.",
        "thin",
        {"architecture": {"name": "shared-bottom"}, "sharing": {**pruning, "per_reader": True, "lambda": 5e-5}},
    )


def _cautions(facts: TaskFacts) -> Iterator[str]:
    if len(facts.rows) == 1:
        yield "there is one task: nothing is shared, and sparsity can only make its network smaller."
    else:
        yield (
            "overlap of masks is a noisy sign: with 100 to 400 rows it was 0.04 to 0.44 within clusters of related "
            "regressions, and 0.00 to 0.24 across. The cosine of gradients decides nothing here: PCGrad, which "
            "acts on it, brought no gain in these experiments."
        )
    encoder = facts.config["encoder"]["name"]
    if facts.weights > _MEASURED or encoder != "mlp":
        yield (
            f"the experiments had small networks (up to {_MEASURED:,} shared weights, mostly perceptrons on vectors); "
            f"yours is {encoder!r} with {facts.weights:,}. What holds for it, a study of your own decides."
        )
    if facts.weights < _NARROW:
        yield (
            f"the network has {facts.weights:,} shared weights. Masks below keep 0.3 destroyed networks of that size."
        )
    if not facts.vectors:
        yield (
            "beyond vectors only two image sets were measured: there the best dense network was as good as any mask, "
            "and plain Fisher masks were worse."
        )
