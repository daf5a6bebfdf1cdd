"""The QEMU backend."""
