"""The encoder alone, trained on text or translations of a language that it does not know (`bridge-ds adapt`)."""
