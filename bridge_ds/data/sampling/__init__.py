"""Which samples a step uses, in which order, on which rank."""
