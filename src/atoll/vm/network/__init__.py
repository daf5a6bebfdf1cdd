"""Networks of VMs: one process each, which has the cards of all VMs on it."""
