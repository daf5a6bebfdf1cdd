"""Bringing images, volumes, networks and containers over from another Docker engine."""
