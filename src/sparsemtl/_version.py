"""The version of sparsemtl, in one place: the packaging, the command line and run folders read it here."""

__version__ = "0.3.0.dev0"
