"""Which languages an encoder, or a trained run, reads: measured on sentences that are parallel over languages."""
