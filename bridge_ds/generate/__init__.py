"""`bridge-ds generate`: a trained bridge answers one text, a file of texts, or line after line."""
