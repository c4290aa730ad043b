"""Around a run: the factory, options files, checkpoints, logs and pictures."""
