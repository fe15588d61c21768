"""Training runs: settings, run folder, checkpoints, resuming."""
