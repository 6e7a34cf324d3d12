"""Rules of channels for every kind of node. One file per kind; `rule.py` has the contract.

A rule is right only for the cases that its maker checks: where a maker returns None, the node has an `UnknownRule`,
which needs all that the node reads and removes nothing. Unknown operations are therefore kept, and never wrong.
"""

from sparsemtl.compaction.rules.axes import Regrouping
from sparsemtl.compaction.rules.lookup import rules_for
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, UnknownRule

__all__ = ["ChannelRule", "Editor", "Regrouping", "UnknownRule", "rules_for"]
