"""Training: plan, rows, loop, checkpoint, result."""
