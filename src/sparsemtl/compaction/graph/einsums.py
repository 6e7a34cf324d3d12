"""Einsums of two tensors as products of matrices, or as linear layers where one tensor is the network's own."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx, nn

from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import operation
from sparsemtl.compaction.graph.sizes import shape_of
from sparsemtl.compaction.rules.parameter import is_read_once


def open_einsums(network: Network) -> None:
    """Replace einsums of two tensors, of which no letter stands twice in one of them.

    - One tensor is a parameter, and no letter stands in all three: a linear layer, whatever the number of letters.
    - Otherwise a product of matrices, if at most one letter is summed and at most one stands in each tensor alone.
    """
    for node in list(network.graph.nodes):
        given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
        if operation(node) != "einsum" or not isinstance(node.args[0], str):
            continue
        if len(given) != 2 or given[0] is given[1] or not all(isinstance(each, fx.Node) for each in given):
            continue
        letters = _Letters.of(node.args[0])
        if letters is None or _repeats(given, letters):
            continue
        with network.graph.inserting_before(node):
            one, other = given
            if is_read_once(other, network):
                made = _as_layer(network, one, other, letters)
            elif is_read_once(one, network):
                made = _as_layer(network, other, one, letters.swapped())
            else:
                made = _as_product(network, one, other, letters)
        if made is not None:
            made.meta.update(node.meta)  # its shape
            node.replace_all_uses_with(made)
            network.graph.erase_node(node)
            for tensor in given:  # the layer has its name
                if tensor.op == "get_attr" and not tensor.users:
                    network.tensors.pop(str(tensor.target))
                    network.graph.erase_node(tensor)


@dataclass(frozen=True)
class _Letters:
    """Letters of an einsum of two tensors, none of them twice in one tensor."""

    one: str
    other: str
    out: str

    @classmethod
    def of(cls, equation: str) -> _Letters | None:
        match = re.fullmatch(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)", equation.replace(" ", ""))
        if match is None or any(len(set(letters)) < len(letters) for letters in match.groups()):
            return None
        return cls(*match.groups())

    def swapped(self) -> _Letters:
        return _Letters(self.other, self.one, self.out)

    @property
    def shared(self) -> list[str]:
        """Letters of all three."""
        return [letter for letter in self.out if letter in self.one and letter in self.other]

    @property
    def summed(self) -> list[str]:
        """Letters of both tensors that the result lacks."""
        return [letter for letter in self.one if letter in self.other and letter not in self.out]

    @property
    def rows(self) -> list[str]:
        """Letters of the first tensor and the result."""
        return [letter for letter in self.one if letter not in self.other and letter in self.out]

    @property
    def columns(self) -> list[str]:
        """Letters of the second tensor and the result."""
        return [letter for letter in self.other if letter not in self.one and letter in self.out]

    @property
    def complete(self) -> bool:
        """True if every letter is one of these."""
        own = [*self.shared, *self.summed]
        return len(self.one) == len(own) + len(self.rows) and len(self.other) == len(own) + len(self.columns)


def _repeats(given: Sequence[fx.Node], letters: _Letters) -> bool:
    """Return whether a tensor is repeated along a letter that is summed, as no product of matrices does."""
    shapes = [shape_of(each) for each in given]
    if None in shapes:  # of a graph that was not recorded
        return False
    named = zip((letters.one, letters.other), shapes, strict=True)
    one, other = (dict(zip(own, shape or (), strict=True)) for own, shape in named)
    return any(one[letter] != other[letter] for letter in letters.summed)


def _ordered(network: Network, node: fx.Node, letters: Sequence[str], order: Sequence[str]) -> fx.Node:
    """Return a tensor with its axes in another order."""
    if list(letters) == list(order):
        return node
    places = [list(letters).index(letter) for letter in order]
    return network.graph.call_method("permute", (node, *places))


def _as_product(network: Network, one: fx.Node, other: fx.Node, letters: _Letters) -> fx.Node | None:
    """Return the product of both tensors, of matrices or of numbers; None if there is none."""
    shared, summed, rows, columns = letters.shared, letters.summed, letters.rows, letters.columns
    if not letters.complete or max(len(summed), len(rows), len(columns)) > 1:
        return None
    left = _ordered(network, one, letters.one, [*shared, *rows, *summed])
    right = _ordered(network, other, letters.other, [*shared, *summed, *columns])
    if not (summed or rows or columns):
        product = network.graph.call_function(operator.mul, (left, right))
    else:
        left, right = _matrix(network, left, rows, summed), _matrix(network, right, summed, columns)
        product = network.graph.call_function(torch.matmul, (left, right))
        if not (rows and columns):
            places: Any = (..., slice(None) if rows else 0, slice(None) if columns else 0)
            product = network.graph.call_function(operator.getitem, (product, places))
    return _ordered(network, product, [*shared, *rows, *columns], letters.out)


def _matrix(network: Network, node: fx.Node, rows: Sequence[str], columns: Sequence[str]) -> fx.Node:
    """Return a tensor whose last axes are rows and columns; those without a letter have length one."""
    if not columns:
        node = network.graph.call_method("unsqueeze", (node, -1))
    return node if rows else network.graph.call_method("unsqueeze", (node, -2))


def _as_layer(network: Network, source: fx.Node, weight: fx.Node, letters: _Letters) -> fx.Node | None:
    """Return a linear layer on the summed letters of a tensor with a parameter as its weight, None if there is none."""
    summed, rows, columns = letters.summed, letters.rows, letters.columns
    tensor: Any = network.tensor(weight)
    if letters.shared or not (letters.complete and summed and rows and columns):
        return None
    sizes = dict(zip(letters.other, tensor.shape, strict=True))
    matrix = tensor.detach().permute([letters.other.index(letter) for letter in (*columns, *summed)])
    matrix = matrix.reshape(prod(sizes[each] for each in columns), -1).clone()
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(matrix, requires_grad=tensor.requires_grad)
    network.modules[str(weight.target)] = layer.eval()
    graph = network.graph
    places = [graph.call_method("size", (source, letters.one.index(letter))) for letter in rows]
    read = _ordered(network, source, letters.one, [*rows, *summed])
    if len(summed) > 1:
        read = graph.call_method("reshape", (read, *places, matrix.shape[1]))
    made = graph.call_module(str(weight.target), (read,))
    if len(columns) > 1:
        made = graph.call_method("view", (made, *places, *(sizes[each] for each in columns)))
    return _ordered(network, made, [*rows, *columns], letters.out)
