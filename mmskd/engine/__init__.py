"""What drives a training: the hooks of MMEngine's Runner, and the reading of checkpoints."""
