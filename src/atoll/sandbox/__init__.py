"""Disposable VMs."""
