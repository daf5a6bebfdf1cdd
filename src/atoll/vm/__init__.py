"""One VM: the plan of its boot, its life from spawn to close, and what to say when it does not come up."""
