"""From a checkpoint and a text to an answer: one path for evaluation, harness, generate, serve, hub and doctor."""
