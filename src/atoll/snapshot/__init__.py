"""Snapshots: what a VM was, kept for good."""
