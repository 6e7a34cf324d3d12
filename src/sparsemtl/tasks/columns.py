"""Loaders whose batches are mappings that hold inputs and labels together, as those of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsemtl.errors import LabelError, ParameterError, unknown_name


class ColumnLoader:
    """Loader that yields (x, {target: labels}) from batches in which inputs and labels stand side by side.

    Args:
        loader: yields mappings column -> tensor, such as a `DataLoader` with `DataCollatorWithPadding`.
        inputs: column that is the input, or columns that make up the input, a dict.
        targets: target -> column of its labels, or the columns of labels, whose names are then those of the targets.

    Examples:
        >>> batches = [{"input_ids": torch.ones(2, 3), "label_1": torch.tensor([0, 1])}]
        >>> loader = ColumnLoader(batches, inputs=["input_ids"], targets={"intent": "label_1"})
        >>> [(sorted(x), sorted(targets)) for x, targets in loader]
        [(['input_ids'], ['intent'])]
    """

    def __init__(self, loader: Any, *, inputs: str | Sequence[str], targets: Mapping[str, str] | Sequence[str]) -> None:
        self.loader = loader
        self.inputs = inputs
        if isinstance(targets, str):
            targets = [targets]
        self.targets = dict(targets) if isinstance(targets, Mapping) else {name: name for name in targets}
        read = {inputs} if isinstance(inputs, str) else set(inputs)
        if not read:
            raise ParameterError("`inputs` names no column.")
        if both := sorted(read & set(self.targets.values())):
            raise ParameterError(f"column {both[0]!r} is named as an input and as a target.")

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for batch in self.loader:
            if not isinstance(batch, Mapping):
                raise LabelError(f"ColumnLoader reads mappings column -> tensor, got {type(batch).__name__}.")
            targets = {target: _column(batch, column) for target, column in self.targets.items()}
            if isinstance(self.inputs, str):
                yield _column(batch, self.inputs), targets
            else:
                yield {column: _column(batch, column) for column in self.inputs}, targets

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader, such as its sampler, whose random state the trainer saves."""
        if name == "loader":  # not set yet, while unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)


def _column(batch: Mapping[str, Any], name: str) -> Any:
    if name not in batch:
        raise LabelError(f"a batch: {unknown_name('column', name, list(batch))}")
    return batch[name]
