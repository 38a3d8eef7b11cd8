"""What a run leaves for people: metrics.jsonl, MLflow, console, plots. Hooks of the engine, rank 0 only."""
