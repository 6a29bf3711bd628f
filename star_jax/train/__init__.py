"""Training shared by both halves: state, step, loop, optimizers, checkpoints."""
