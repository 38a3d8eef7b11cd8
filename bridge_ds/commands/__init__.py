"""Command lines of `bridge-ds` that have no package of their own; bridge_ds/__main__.py lists all commands."""
