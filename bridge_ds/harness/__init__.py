"""Runs as models of lm-evaluation-harness: any of its tasks, asked of a trained bridge."""
