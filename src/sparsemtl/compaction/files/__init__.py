"""Networks in files: export, bundles of several tasks, loading."""
