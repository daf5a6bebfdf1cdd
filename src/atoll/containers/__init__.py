"""A Docker engine in a machine, and what leads to it."""
