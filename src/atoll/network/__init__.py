"""The path of a network's frames: one process that serves the machines on it, and the host's side of it."""
