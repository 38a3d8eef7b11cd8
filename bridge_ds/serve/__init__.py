"""`bridge-ds serve`: a trained bridge behind OpenAI's completions and chat completions.

A request is validated (`protocol`), becomes rows of token ids, and waits in a queue of limited length (`batching`). One
thread, the scheduler, owns the models: it takes rows that can share a batch and gives them to a backend (`backends`):
transformers in this process, or a vLLM server that is given prompt embeddings. Answers return to the request's
coroutine (`app`) piece by piece and are sent whole or as server-sent events (`replies`).
"""
