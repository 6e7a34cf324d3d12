"""Modules that every worker needs, for the server that forks workers: all that takes longer than 0.1 s to import."""

from importlib import import_module

from sparsemtl.tasks.metrics.torchmetrics_import import import_torchmetrics

import_torchmetrics()
for _name in ("torch._dynamo", "lightning_fabric", "torchmetrics.classification", "sparsemtl.study.runner"):
    import_module(_name)
