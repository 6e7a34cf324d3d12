"""How channels pass through every kind of node. One file a kind; `rule.py` has the contract.

A rule is only right for the cases that its maker looked at: where a maker gives None, `Rule` stands for the node, which
needs all that it reads and cuts nothing. What nobody knows is therefore kept, and never wrong.
"""

from sparsemtl.compaction.rules.lookup import rules_for
from sparsemtl.compaction.rules.rule import Editor, Rule

__all__ = ["Editor", "Rule", "rules_for"]
