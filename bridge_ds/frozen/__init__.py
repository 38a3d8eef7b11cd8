"""What the frozen encoder and the frozen LLM share: loading, freezing, checking against the files, identity."""
