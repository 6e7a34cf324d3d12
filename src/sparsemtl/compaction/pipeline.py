"""Steps of compaction, from a module of our own to the network that takes its place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from sparsemtl.compaction.checks import check_inputs, check_no_grad, check_sizes
from sparsemtl.compaction.copies import Precision, copied
from sparsemtl.compaction.cost import (
    ActivationMemory,
    activations_by_layer,
    macs_by_layer,
    measure_activations,
    parameter_count,
)
from sparsemtl.compaction.graph.canonicalize import canonicalize, drop_unread
from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.own_tensors import place_own_tensors
from sparsemtl.compaction.graph.questions import has_lone, needless
from sparsemtl.compaction.graph.sizes import forget, measure, trace_sizes
from sparsemtl.compaction.graph.unrolling import unroll, write_states
from sparsemtl.compaction.inference import inferred
from sparsemtl.compaction.inputs import MAX_SAMPLES, Inputs, Like, tensors
from sparsemtl.compaction.passes import fold_constants, fold_norms, needed_channels, remove_channels
from sparsemtl.compaction.plans.merging import merge_equal
from sparsemtl.compaction.report import CompactionReport, LayerCosts, LayerWidths
from sparsemtl.compaction.rules import rules_for
from sparsemtl.compaction.rules.copying import close_shuffles
from sparsemtl.compaction.rules.shapes import write_known_sizes
from sparsemtl.compaction.tracing.trace import Root, traced
from sparsemtl.compaction.verification.comparison import (
    OUTPUT,
    Comparison,
    DifferentOutputsError,
    Verification,
    device_of,
)
from sparsemtl.compaction.verification.locating import first_difference
from sparsemtl.errors import CompactionError, CompactionWarning, ParameterError


class CompactedModule(fx.GraphModule):
    """Compacted network.

    Attributes:
        report: channels of every layer, and the difference of the outputs from the model's.
    """

    report: CompactionReport


def built(network: Network, graph: fx.Graph) -> CompactedModule:
    """Return a graph on the modules of a network, as a module in eval mode."""
    graph.lint()
    named = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}
    parts = {name: part for name, part in {**network.modules, **network.tensors}.items() if name in named}
    module = CompactedModule(parts, graph, f"Compact{network.name}")
    module.eval()
    return module


def attach(module: CompactedModule, report: CompactionReport) -> CompactedModule:
    """Attach a report to a module, which its copies keep."""
    module.report = report
    module.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"report": report}
    return module


def compact_root(root: Root, example: Any, *, single: bool, multiple_of: int) -> CompactedModule:
    """Compact a module and compare the outputs.

    Args:
        root: the module; the result shares the parts that it keeps.
        example: `example_inputs` of `compact`.
        single: True if the module has one argument, whatever the example is.
        multiple_of: see `compact`.
    """
    model, precision = replace(root, module=copied(root.module)), Precision(root.module, root.prefix)
    inputs, missing = _inputs(model.module, example, single=single)
    ran = _in_double(model.module, inputs)
    if ran is not None or inputs is None:
        root.module.double()
    network = _network(root, model, ran, inputs)
    parameters = parameter_count(model.module)
    before = LayerCosts() if inputs is None else _costs(built(network, copy.deepcopy(network.graph)), inputs)
    widths = LayerWidths(network)
    _shrink(network, widths, multiple_of)
    small = built(network, network.graph)
    verification = _finished(small, model, precision, inputs, missing)
    after = LayerCosts() if inputs is None else _costs(small, inputs)
    report = CompactionReport(
        layers=widths.layers(network, before, after),
        parameters=(parameters, parameter_count(small)),
        macs=None if inputs is None else (sum(before.macs.values()), sum(after.macs.values())),
        verification=verification,
        example=None if inputs is None else inputs.mapped(Like.of),
        memory=None if inputs is None else (_memory(model.module, inputs), _memory(small, inputs)),
        cuts=network.cuts,
    )
    return attach(small, report)


def _finished(
    small: CompactedModule, model: Root, precision: Precision, inputs: Inputs | None, missing: str
) -> Verification:
    """Bring a network from double precision into the model's, and verify it in both."""
    if inputs is None:
        precision.restore(small)
        verification = Verification(reason=missing)
    else:
        comparison = Comparison(model.module, inputs, model.output or OUTPUT)
        try:
            comparison.run(small, torch.float64)
            precision.restore(small)
            comparison.run(small, torch.float32)
            if not comparison.is_done:
                comparison.run_as_they_are(small)
        except DifferentOutputsError as error:
            layer = _first_difference(model, inputs, error.inputs)
            where = f" The first layer with other outputs is {layer!r}." if layer else ""
            raise CompactionError(f"{model.name}: {error}{where}") from None
        _refuse_others(small, inputs.named(model.module), comparison)
        verification = comparison.result()
    if verification.reason:
        remedy = "" if inputs else " Compact it with a batch that it reads (`example_inputs=...`)."
        warnings.warn(
            f"{model.name}: nothing was verified, since {verification.reason}.{remedy}",
            CompactionWarning,
            stacklevel=8,
        )
    return verification


def _refuse_others(small: CompactedModule, arguments: Mapping[str, Any], comparison: Comparison) -> None:
    """Add checks for the inputs that a network is not right for: other sizes, or recorded gradients."""
    if not (comparison.without_gradients or comparison.fixed):
        return
    if comparison.without_gradients:
        with small.graph.inserting_before(next(iter(small.graph.nodes))):
            small.graph.call_function(check_no_grad)
    for node in [node for node in small.graph.nodes if node.op == "placeholder"]:
        for axis in comparison.fixed:
            sizes = [tensor.shape[axis] for tensor in tensors(arguments[str(node.target)]) if tensor.ndim > axis]
            with small.graph.inserting_after(node):
                small.graph.call_function(check_sizes, (node, axis, sizes))
    small.recompile()


def _inputs(model: nn.Module, example: Any, *, single: bool) -> tuple[Inputs | None, str]:
    """Return the example or an inferred one, and the reason if there is none."""
    known = getattr(model, "report", None)
    if example is None and isinstance(known, CompactionReport) and known.example is not None:
        generator = torch.Generator().manual_seed(0)
        example = known.example.mapped(lambda like: like.drawn(generator))
    if example is None:
        return inferred(model)
    given = Inputs.of(example, model, single=single)
    own = next((p for p in model.parameters() if p.is_floating_point()), None)
    given = given.to(dtype=None if own is None else own.dtype, device=device_of(model))
    first = given.first(MAX_SAMPLES)
    error = _error(model, first)
    if error is not None and first is not given:
        first, error = given, _error(model, given)
    if error is not None:
        raise ParameterError(
            f"`example_inputs`: the model cannot be run on inputs of shape {given.shapes()}: {error}"
        ) from error
    return first, ""


def _error(model: nn.Module, inputs: Inputs) -> Exception | None:
    """Return the error that a model raises on inputs, None if it runs."""
    try:
        inputs.call(model)
    except Exception as error:
        return error
    return None


def _in_double(model: nn.Module, inputs: Inputs | None) -> nn.Module | None:
    """Return a copy of a model in double precision, None if it does not run in that precision."""
    if inputs is None or device_of(model).type == "mps":
        return None
    double = copied(model).double()
    return double if _error(double, inputs.to(dtype=torch.float64, device=device_of(model))) is None else None


def _network(root: Root, model: Root, ran: nn.Module | None, inputs: Inputs | None) -> Network:
    """Return the graph of a module in canonical form, with the shapes of its tensors if there is an example.

    Args:
        root: the module, in double precision if it runs in that; the result shares the parts that it keeps.
        model: a copy of the module as it was.
        ran: a copy of the module in double precision, None if it does not run in that.
        inputs: the example.
    """
    if inputs is None:
        network = canonical_network(root, copied(model.module), None)
        resolve_sizes(network)
        return network
    several = _two_samples(model.module, inputs)
    network = _with_shapes(root, ran or copied(model.module), several)
    if ran is not None and has_lone(network):
        _drop_questions(network, model, inputs.first(1))
    if several is inputs or _runs(network, inputs):
        return network
    again = _in_double(model.module, inputs) or copied(model.module)
    return _with_shapes(replace(model, module=again), copied(again), inputs)


def _two_samples(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return inputs of one sample twice over if the model takes that; the axis of samples is then of no length one."""
    if inputs.samples() != 1:
        return inputs
    two = inputs.mapped(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)
    return two if _error(model, two) is None else inputs


def _with_shapes(root: Root, ran: nn.Module, inputs: Inputs) -> Network:
    """Return the graph of a module in canonical form, with the shapes of all tensors and one module per recurrence."""
    network = canonical_network(root, ran, inputs)
    measure_shapes(network, root.module, inputs)
    if unroll(network):
        measure_shapes(network, root.module, inputs)
    resolve_sizes(network)
    return network


def _runs(network: Network, inputs: Inputs) -> bool:
    """Return whether a graph runs on inputs, which its checks may refuse."""
    whole = built(network, copy.deepcopy(network.graph))
    like = next((p for p in whole.parameters() if p.is_floating_point()), None)
    same = inputs.to(dtype=None if like is None else like.dtype, device=device_of(whole))
    return _error(whole, same) is None


def _drop_questions(network: Network, model: Root, alone: Inputs) -> None:
    """Drop the checks that refuse one sample, if the graph gives the model's outputs for one sample without them.

    Models ask whether there are as many samples as rows of positions, which they would repeat otherwise.

    Args:
        network: graph of the model on several samples, in double precision.
        model: the model.
        alone: one sample.
    """
    again = replace(model, module=copied(model.module).double())
    checks = needless(
        network,
        _with_shapes(again, copied(again.module), alone.to(dtype=torch.float64, device=device_of(again.module))),
    )
    graph = copy.deepcopy(network.graph)
    for node, own in zip(network.graph.nodes, list(graph.nodes), strict=True):
        if node in checks:
            graph.erase_node(own)
    comparison = Comparison(model.module, alone)
    try:
        comparison.run(built(network, graph), torch.float64)
    except DifferentOutputsError:
        return
    if comparison.result().verified and not comparison.fixed:
        for node in checks:
            network.graph.erase_node(node)
        drop_unread(network)


def canonical_network(root: Root, ran: nn.Module, inputs: Inputs | None) -> Network:
    """Return the graph of a module in canonical form.

    It is recorded in double precision if the module runs in that precision: a dtype that the module reads from a tensor
    then differs from one that it names.
    """
    like = next((p for p in ran.parameters() if p.is_floating_point()), None)
    same = None if inputs is None else inputs.to(dtype=None if like is None else like.dtype, device=device_of(ran))
    network = traced(root, ran, same)
    canonicalize(network)
    if root.merges:
        merge_equal(network)
    write_states(network)
    place_own_tensors(network)
    return network


def measure_shapes(network: Network, model: nn.Module, inputs: Inputs) -> CompactedModule:
    """Record the shapes of all tensors of a graph on the example; return a module that computes a copy of the graph."""
    whole = built(network, copy.deepcopy(network.graph))
    like = next((p for p in whole.parameters() if p.is_floating_point()), None)
    same = inputs.to(dtype=None if like is None else like.dtype, device=device_of(whole))
    measure(network, whole, list(same.mapped(Tensor.clone).named(model).values()))
    return whole


def measured(root: Root, example: Any, *, single: bool) -> tuple[Network, dict[str, int]]:
    """Return the graph of a module with the shapes of its tensors, and the multiply-adds of a sample per layer.

    Args:
        root: the module, which changes to double precision if it runs in that.
        example: `example_inputs` of `compact`.
        single: True if the module has one argument, whatever the example is.

    Raises:
        ParameterError: if there is no example.
    """
    inputs, missing = _inputs(root.module, example, single=single)
    if inputs is None:
        raise ParameterError(f"{root.name} cannot be run, since {missing}. Give a batch that it reads.")
    model, ran = replace(root, module=copied(root.module)), _in_double(root.module, inputs)
    if ran is not None:
        root.module.double()
    network = _network(root, model, ran, inputs)
    return network, dict(_costs(built(network, copy.deepcopy(network.graph)), inputs).macs)


def _shrink(network: Network, widths: LayerWidths, multiple_of: int) -> None:
    fold_norms(network, rules_for(network))
    rules = rules_for(network)
    widths.explain(network, rules)
    fold_constants(rules)
    needed = needed_channels(rules, multiple_of)
    if multiple_of > 1:
        widths.explain_fillers(needed, multiple_of)
    widths.explain_rest(remove_channels(network, rules, needed, multiple_of), network, rules)
    forget(network)


def resolve_sizes(network: Network) -> None:
    """Check the axes of inputs in a graph, and write the sizes that are the same for all inputs as numbers."""
    check_inputs(network)
    trace_sizes(network)
    while write_known_sizes(network, rules := rules_for(network)) or close_shuffles(network, rules):
        drop_unread(network)
    drop_unread(network)


def _first_difference(model: Root, inputs: Inputs, wrong: Inputs) -> str:
    """Return the name of the first layer whose output in the graph differs from the model's, "" if there is none."""
    again = replace(model, module=copied(model.module).double())
    network = canonical_network(again, copied(model.module).double(), inputs)
    graph = built(network, network.graph)
    double = wrong.to(dtype=torch.float64, device=device_of(model.module))
    return first_difference(copied(model.module).double(), graph, double, model.prefix)


def _costs(module: nn.Module, inputs: Inputs) -> LayerCosts:
    """Return the costs of the layers for one sample, or for the example if no sample can be run alone."""
    case = one_sample(module, inputs)
    return LayerCosts(
        macs_by_layer(module, *case.args, **case.kwargs), activations_by_layer(module, *case.args, **case.kwargs)
    )


def _memory(module: nn.Module, inputs: Inputs) -> ActivationMemory:
    """Return the memory of the activations for one sample, or for the example if no sample can be run alone."""
    case = one_sample(module, inputs)
    return measure_activations(module, *case.args, **case.kwargs)


def one_sample(module: nn.Module, inputs: Inputs) -> Inputs:
    """Return the first sample of an example in a module's precision, or all if it cannot be run alone.

    Raises:
        CompactionError: if the module cannot be run on the example either.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    same = inputs.to(dtype=None if like is None else like.dtype, device=device_of(module))
    alone = same.first(1)
    if _error(module, alone) is None:
        return alone.mapped(Tensor.clone)  # a module may write into its inputs
    if (error := _error(module, same)) is not None:
        raise CompactionError(
            f"{type(module).__name__.removeprefix('Compact')}: its graph cannot be run on inputs of shape "
            f"{inputs.shapes()}, which the model takes: {error}."
        ) from error
    return same.mapped(Tensor.clone)
