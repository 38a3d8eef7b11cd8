"""What a run will need, by arithmetic on shapes: memory a rank, bytes over the network, time. No weights, no torch."""
