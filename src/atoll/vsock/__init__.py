"""AF_VSOCK for a guest: a vhost-user device of Atoll's own, with no kernel module and no root."""
