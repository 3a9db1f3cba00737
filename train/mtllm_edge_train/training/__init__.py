"""The training loop: settings, resuming, distribution over processes."""
