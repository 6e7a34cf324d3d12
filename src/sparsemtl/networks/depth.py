"""Depth of the blocks of a network, found from its modules, for learning rates that decay from layer to layer.

As in timm and BEiT (Bao et al. 2022), blocks are numbered in the order in which they stand in the network. A chain of
blocks is an `nn.Sequential`, an `nn.ModuleList`, or children with numbers (`layer1`, `layer2`). Chains inside a chain
are stages, whose blocks are counted, and so are modules with one chain of blocks in each (Swin, ConvNeXt); everything
else that has parts is one block (a transformer layer, a residual block). A chain of plain layers is a chain of blocks
as well, if the network has no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from sparsemtl.errors import ParameterError

Block = tuple[str, ...]
"""Names of the modules of a block: one, or a layer and the norms behind it."""
_Child = tuple[str, nn.Module]


def heights(network: nn.Module, name: str = "") -> dict[str, int]:
    """Return the number of blocks from the top that each parameter lies in or below.

    Args:
        network: an encoder.
        name: its name, for messages.

    Returns:
        Name of every parameter -> 0 behind the last block (final norm, pooler), 1 in the last block, and so on; L + 1
        for what stands before the first of L blocks (embeddings, stem, class token).

    Raises:
        ParameterError: if the network has no chain of blocks, or several.

    Examples:
        >>> block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(block(), block()), nn.LayerNorm(4))
        >>> {name: height for name, height in heights(network).items() if name.endswith("weight")}
        {'0.weight': 3, '1.0.0.weight': 2, '1.1.0.weight': 1, '2.weight': 0}
    """
    blocks = _only_chain(network, name)
    parameters = [parameter for parameter, _ in network.named_parameters()]
    own = {p: index for index, block in enumerate(blocks, 1) for p in parameters if _stands_in(p, block)}
    last = max(index for index, p in enumerate(parameters) if p in own)
    found, below = {}, 0
    for index, parameter in enumerate(parameters):
        below = own.get(parameter, below if index < last else len(blocks) + 1)
        found[parameter] = len(blocks) + 1 - below
    if len(set(found.values())) == 1:
        raise ParameterError(_no_chain(network, name))
    return found


def _only_chain(network: nn.Module, name: str) -> list[Block]:
    """Return the blocks of the only chain; chains of blocks with parts go before those of plain layers."""
    chains = list(_chains(network, ""))
    found = [chain for chain, plain in chains if not plain] or [chain for chain, _ in chains]
    if not found:
        raise ParameterError(_no_chain(network, name))
    if len(found) > 1:
        shown = ", ".join(f"{chain[0][0]} to {chain[-1][0]}" for chain in found[:3])
        raise ParameterError(
            f"`layer_decay`: {_named(network, name)} has {len(found)} chains of blocks ({shown}), and its modules do "
            "not say in which order they run. Name learning rates in `parameter_groups` instead."
        )
    return found[0]


def _chains(module: nn.Module, prefix: str) -> Iterator[tuple[list[Block], bool]]:
    """Yield the outermost chains, each with whether its blocks are plain layers."""
    row = _row(module)
    blocks = list(_blocks(row, prefix))
    plain = not any(map(_has_parts, row))
    if len(blocks) > 1:
        yield blocks, plain
        return
    inner = [chain for child, part in module.named_children() for chain in _chains(part, f"{prefix}{child}.")]
    yield from inner
    if not inner and blocks and not plain:
        yield blocks, plain


def _row(module: nn.Module) -> list[_Child]:
    """Return the children that stand one behind the other: those of a chain, or those with numbers."""
    children = [(name, part) for name, part in module.named_children() if _holds_parameters(part)]
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        return children
    numbered: dict[str, list[_Child]] = {}
    for name, part in children:
        if match := re.fullmatch(r"(.*?)\d+", name):
            numbered.setdefault(match[1], []).append((name, part))
    rows = [row for row in numbered.values() if len(row) > 1]
    rows = [row for row in rows if any(map(_has_parts, row))] or rows
    return rows[0] if len(rows) == 1 else []


def _blocks(row: Sequence[_Child], prefix: str) -> Iterator[Block]:
    """Yield the blocks of a row; layers between blocks with parts belong to the block before them."""
    if not any(map(_has_parts, row)):
        yield from _layers(row, prefix)
        return
    inner = _stages(row)
    for name, part in row:
        stage = _row(part) if isinstance(part, (nn.Sequential, nn.ModuleList)) else []
        if name in inner:
            own, chain = inner[name]
            yield from _blocks(_row(chain), f"{prefix}{name}.{own}.")
        elif any(map(_has_parts, stage)):
            yield from _blocks(stage, f"{prefix}{name}.")
        elif _has_parts((name, part)):
            yield (f"{prefix}{name}",)


def _stages(row: Sequence[_Child]) -> dict[str, _Child]:
    """Return name of a module of a row -> the chain in it, if the modules are stages, as in Swin and ConvNeXt.

    Each holds one chain of blocks with parts, beside a down-sampling, and the blocks of two stages differ in shape.
    Chains inside equal modules, such as experts in the layers of a transformer, run side by side.
    """
    found: dict[str, _Child] = {}
    shapes = set()
    for name, part in row:
        chains = [child for child in part.named_children() if isinstance(child[1], (nn.Sequential, nn.ModuleList))]
        chains = [child for child in chains if any(map(_has_parts, _row(child[1])))]
        if isinstance(part, (nn.Sequential, nn.ModuleList)) or len(chains) != 1:
            return {}
        found[name] = chains[0]
        first = next(chains[0][1].children())
        shapes.add(tuple(p.shape for p in first.parameters()))
    return found if len(shapes) > 1 else {}


def _layers(row: Sequence[_Child], prefix: str) -> Iterator[Block]:
    """Yield plain layers, each with the norms behind it."""
    block: list[str] = []
    for name, layer in row:
        if block and any(p.ndim > 1 for p in layer.parameters()):
            yield tuple(block)
            block = []
        block.append(f"{prefix}{name}")
    if block:
        yield tuple(block)


def _has_parts(child: _Child) -> bool:
    layer = getattr(child[1], "stands_for", child[1])  # of a module that has taken the place of a layer
    return any(map(_holds_parameters, layer.children()))


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _stands_in(parameter: str, block: Block) -> bool:
    return any(parameter.startswith(f"{part}.") for part in block)


def _named(network: nn.Module, name: str) -> str:
    return f"{name!r} ({type(network).__name__})" if name else type(network).__name__


def _no_chain(network: nn.Module, name: str) -> str:
    return (
        f"`layer_decay`: no depth was found in {_named(network, name)}. Its blocks must stand in an nn.Sequential, an "
        "nn.ModuleList or attributes with numbers (`layer1`, `layer2`). Otherwise name learning rates in "
        "`parameter_groups`."
    )
