"""LayAlign (arXiv 2502.11405): encoder states to every layer of the LLM, weighed for each of them."""

from __future__ import annotations

from bridge_ds.injection.spec import FormSpec

__all__ = ["SPEC"]


def _parameters(layers: int, width: int, llm_width: int, places: int, config: object) -> int:
    second = (llm_width + 1) * llm_width * bool(getattr(config, "mlp", False))
    return 2 * places * (layers + 1) + (width + 1) * llm_width + second + places


def _activations(tokens: int, width: int, llm_width: int, places: int, size: int, config: object) -> int:
    inner = llm_width * bool(getattr(config, "mlp", False))
    return 2 * places * tokens * (width + llm_width + inner) * size


SPEC = FormSpec(
    module="bridge_ds.injection.every_layer.module:EveryLayer",
    summary="encoder states, weighed for each layer of the LLM, through its own key and value projections (LayAlign)",
    options=("mlp",),
    parameters=_parameters,
    activations=_activations,
    projects=True,
)
