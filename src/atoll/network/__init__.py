"""The network path: frames of guests on one side, ordinary sockets of this host on the other."""
