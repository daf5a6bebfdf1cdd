"""The network's end of a guest's TCP connections (RFC 9293), without any I/O."""
