"""The states of a frozen encoder, kept on disk (`data.states_cache`)."""
