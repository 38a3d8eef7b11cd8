"""How well the bridge and the LLM alone choose the right label, by task and language."""
