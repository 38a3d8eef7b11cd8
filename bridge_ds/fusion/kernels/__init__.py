"""Code paths of the fusions' arithmetic: one contract, three ways.

`reference` is the specification (the full layer, plain sums); `torch` and `triton` give what it gives in output and
every gradient, but read the L states where the encoder left them, form no L x N x D block and skip padding.
"""

from bridge_ds.fusion.kernels.paths import PATHS, choose, fuse_by_layer, fuse_by_query, fuse_by_token, why_no_triton

__all__ = ["PATHS", "choose", "fuse_by_layer", "fuse_by_query", "fuse_by_token", "why_no_triton"]
