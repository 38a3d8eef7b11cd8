"""`python -m bridge_ds.generate`: one text, a file of them, or one after the other, answered by a trained bridge."""
