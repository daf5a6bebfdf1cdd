"""VMs that were frozen once, and that others start from."""
