"""The name server of a network: the names of its machines, and the host's resolvers for all others."""
