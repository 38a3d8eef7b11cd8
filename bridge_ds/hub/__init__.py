"""A trained bridge as a Hugging Face model: config, model, processor, and the folder in which it is shared."""
