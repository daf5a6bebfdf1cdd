"""Snapshots: what a VM was at one instant, kept for good."""
