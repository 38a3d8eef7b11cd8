"""Records of a run: metrics.jsonl, trackers (MLflow, TensorBoard, W&B), console, plots. Hooks on rank 0 only."""
