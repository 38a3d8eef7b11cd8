"""Shards on disk: index, tables, scan, stores, random access."""
