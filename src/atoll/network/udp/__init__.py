"""The network's end of a guest's datagrams (RFC 768, RFC 4787), without any I/O."""
