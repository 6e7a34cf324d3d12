"""A model whose heads already exist, as a multi-task model: nothing in it is rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsemtl.backbones.adapters import call
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.networks.model import MultiTaskModel

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class WrappedModel(MultiTaskModel):
    """Multi-task model of the user's own, as `from_model` returns it.

    Args:
        model: module that computes the outputs of all tasks in one forward pass.
        tasks: the tasks.
        shared: names of the shared modules in `model`.
        heads: task -> names of the modules in `model` that only this task uses.
        outputs: function of the model's output that returns task -> outputs.

    Examples:
        >>> own = nn.ModuleDict({"body": nn.Linear(4, 8), "head": nn.Linear(8, 1)})
        >>> own.forward = lambda x: {"size": own["head"](own["body"](x))}
        >>> model = from_model(own, [Regression("size")], shared="body", heads={"size": "head"})
        >>> type(model).__name__, list(model.task_modules("size"))
        ('WrappedModel', ['model.head'])
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        *,
        shared: Sequence[str],
        heads: Mapping[str, Sequence[str]],
        outputs: Callable[[Any], Mapping[str, Tensor]],
    ) -> None:
        super().__init__(tasks)
        self.model = model
        self._shared = tuple(shared)
        self._heads = {task: tuple(heads.get(task, ())) for task in self.tasks}
        self._outputs = outputs

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the model, heads of all tasks included, and return the outputs of the named tasks."""
        chosen = self.chosen(tasks)
        outputs = self._outputs(call(self.model, x))
        for task in chosen:
            if task not in outputs:
                raise ParameterError(f"the model's outputs: {unknown_name('task', task, outputs)}")
        return {task: outputs[task] for task in chosen}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter: one for those of a head, all for the others."""
        users = dict.fromkeys((name for name, _ in self.named_parameters()), frozenset(self.tasks))
        for task in self.tasks:
            users.update(dict.fromkeys(self.task_parameters(task), frozenset({task})))
        return users

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the shared modules."""
        return self._modules_of(self._shared)

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the shared module, or the module directly around all shared ones; none if they stand apart."""
        if len(self._shared) == 1:
            return self.shared_modules()
        around = {name.rpartition(".")[0] for name in self._shared}
        return self._modules_of(around) if len(around) == 1 and "" not in around else {}

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """Return the modules that are neither shared nor of a head: all tasks use them, and no mask acts on them."""
        named = [*self._shared, *(name for names in self._heads.values() for name in names)]
        return self._modules_of(_rest(self.model, named))

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the modules of the task's head."""
        self.check_task(task)
        return {**self._modules_of(self._heads[task]), **self.loss_modules(task)}

    def _modules_of(self, names: Iterable[str]) -> dict[str, nn.Module]:
        return {f"model.{name}": self.model.get_submodule(name) for name in names}


def from_model(
    model: nn.Module,
    tasks: Sequence[Task],
    *,
    shared: str | Sequence[str],
    heads: Mapping[str, str | Sequence[str]],
    outputs: Callable[[Any], Mapping[str, Tensor]] | Sequence[str] | None = None,
) -> WrappedModel:
    """Return a multi-task model that is a model of your own as it is, with the heads that it has.

    Args:
        model: module that computes the outputs of all tasks in one forward pass. A mapping as input becomes keyword
            arguments, a tuple positional ones.
        tasks: the tasks.
        shared: names or globs of the modules that tasks share and masks may act on, such as `backbone` or `backbone.*`.
        heads: task -> names or globs of the modules that only this task uses.
        outputs: function of the model's output that returns task -> outputs; or names of tasks, if the output is a
            tuple in that order. By default the output is a mapping task -> outputs, or an object with an attribute per
            task.

    Raises:
        ParameterError: if a name matches no module, a module is claimed twice, or a parameter stands in no module of
            `shared` or `heads` and directly in a module that holds some of them.

    Examples:
        >>> class Network(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        ...         self.decoders = nn.ModuleDict({"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)})
        ...     def forward(self, x):
        ...         features = self.backbone(x)
        ...         return {name: decoder(features) for name, decoder in self.decoders.items()}
        >>> tasks = [Regression("depth"), Classification("kind", 3)]
        >>> heads = {"depth": "decoders.depth", "kind": "decoders.kind"}
        >>> model = from_model(Network(), tasks, shared="backbone", heads=heads)
        >>> sorted(model.shared_parameters())
        ['model.backbone.0.bias', 'model.backbone.0.weight']
    """
    names = [task.name for task in tasks]
    for task in heads:
        if task not in names:
            raise ParameterError(f"heads: {unknown_name('task', task, names)}")
    owners: dict[str, str] = {}
    found_shared = _claim(model, shared, "shared", owners)
    found_heads = {task: _claim(model, patterns, f"the head of {task!r}", owners) for task, patterns in heads.items()}
    list(_rest(model, owners))  # raises if a parameter belongs to nothing
    return WrappedModel(model, tasks, shared=found_shared, heads=found_heads, outputs=_reader(outputs, names))


def _claim(model: nn.Module, patterns: str | Sequence[str], what: str, owners: dict[str, str]) -> list[str]:
    """Return the topmost modules that match, and note what they belong to."""
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matching = [name for name, _ in model.named_modules() if name and fnmatchcase(name, pattern)]
        if not matching:
            raise ParameterError(f"{what}: no module of {type(model).__name__} matches {pattern!r}. Its modules are "
                                 f"{', '.join(name for name, _ in model.named_children())}, ...")  # fmt: skip
        found += [name for name in matching if not _inside(name, found)]
    for name in found:
        for other, owner in owners.items():
            if _inside(name, [other]) or _inside(other, [name]):
                raise ParameterError(f"module {name!r} belongs to {what}, but {other!r} already to {owner}.")
    owners.update(dict.fromkeys(found, what))
    return found


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _rest(model: nn.Module, named: Iterable[str]) -> Iterator[str]:
    """Yield the topmost modules with parameters that neither are named nor hold a named one."""
    named = list(named)

    def visit(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path in named:
                continue
            if any(_inside(other, [path]) for other in named):
                yield from visit(child, f"{path}.")
            elif any(True for _ in child.parameters()):
                yield path
        if own := [name for name, _ in module.named_parameters(recurse=False)]:
            raise ParameterError(
                f"parameter {prefix + own[0]!r} stands in no module of `shared` or `heads`. Move it into a module of "
                "its own, or name the module that holds it."
            )

    yield from visit(model, "")


def _reader(
    outputs: Callable[[Any], Mapping[str, Tensor]] | Sequence[str] | None, tasks: Sequence[str]
) -> Callable[[Any], Mapping[str, Tensor]]:
    if callable(outputs):
        return outputs
    if outputs is not None:
        order = list(outputs)
        if unknown := [name for name in order if name not in tasks]:
            raise ParameterError(f"outputs: {unknown_name('task', unknown[0], tasks)}")
        return _Ordered(order)
    return _Named(list(tasks))


class _Ordered:
    """Outputs of a tuple by the names of tasks."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __call__(self, outputs: Any) -> dict[str, Tensor]:
        if not isinstance(outputs, (tuple, list)) or len(outputs) != len(self.names):
            raise ParameterError(
                f"the model must return {len(self.names)} outputs, for {', '.join(self.names)}, got "
                f"{len(outputs) if isinstance(outputs, (tuple, list)) else type(outputs).__name__}."
            )
        return dict(zip(self.names, outputs, strict=True))


class _Named:
    """Outputs of a mapping, or of an object with an attribute per task."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __call__(self, outputs: Any) -> Mapping[str, Tensor]:
        if isinstance(outputs, Mapping):
            return outputs
        if isinstance(outputs, (Tensor, tuple, list)):
            raise ParameterError(
                f"the model returned a {type(outputs).__name__}, in which outputs have no names. Pass outputs=[names "
                "of tasks in order], or a function that returns task -> outputs."
            )
        return {name: getattr(outputs, name) for name in self.names if hasattr(outputs, name)}
