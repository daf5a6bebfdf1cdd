"""The port to hypervisors: a device model, what a backend must do, and the backends."""
