"""Containers: a Docker engine in a machine, and its socket on the host."""
