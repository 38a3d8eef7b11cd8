"""bridge_ds: train the small module between a frozen multilingual encoder and a frozen English LLM.

The system of arXiv 2508.09091 (all encoder layers fused, then mapped into the LLM's embedding space), with
LangBridge (arXiv 2401.10695) as the baseline, on DeepSpeed ZeRO-3.
"""

__version__ = "0.1.0"
