"""Patches and workarounds of other libraries: for which versions, why, and which test says when one can go.

A file for each library. `streamed` (transformers) is one of its own, and :mod:`bridge_ds.data.text.spiece` another,
outside: transformers 5 drops the byte fallback of T5's tokenizers.
"""
