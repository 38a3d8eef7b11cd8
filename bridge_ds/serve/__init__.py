"""`python -m bridge_ds.serve`: a trained bridge behind OpenAI's completions and chat completions.

A request is checked (`schema`), becomes rows of token ids (`texts`), and waits in a queue of limited length
(`waiting`). One thread (`scheduler`) owns the models: it takes rows that can share a batch and has them written, by
transformers (`local`) or by a vLLM server that is given prompt embeddings (`vllm`). What is written goes back to the
request's coroutine piece by piece (`work`), which sends it whole or as server-sent events (`app`, `replies`).
"""
