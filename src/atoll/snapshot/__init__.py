"""Running VMs, written down and taken up again."""
