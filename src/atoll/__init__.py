"""Atoll: real Linux virtual machines from one small tool."""
