"""Kernels of the fusions: four operations, three backends, one result.

`reference` is the specification (the full layer, plain sums). `torch` and `triton` give the same output and gradients,
but read the L states without copying or stacking them, and skip padding.
"""

from bridge_ds.fusion.kernels.backends import (
    choose_backend,
    fuse_by_layer,
    fuse_by_matrix,
    fuse_by_query,
    fuse_by_token,
    why_no_triton,
)

__all__ = ["choose_backend", "fuse_by_layer", "fuse_by_matrix", "fuse_by_query", "fuse_by_token", "why_no_triton"]
