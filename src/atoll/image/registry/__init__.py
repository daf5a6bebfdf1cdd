"""Registries of images, by the OCI distribution specification 1.1. Nothing of it is needed for a kept image.

============ ========================================================================
challenges   what a server wants for authentication (pure)
credentials  who the user is at a registry: Docker's and Podman's files, and helpers
patience     how often something is tried again, and after how long (pure, but for waiting)
answers      what a registry's refusal means (pure)
places       under which hosts and names a repository is to be found (pure)
hosts        connections to hosts: TLS, plain HTTP, proxies
tokens       tokens of registries, kept for as long as they hold
session      requests with authentication, redirections and patience
blobs        a blob as a stream that goes on behind what broke off
pulling      an image as it lies in a registry; tags of a repository
packed       a layer on its way there (pure)
uploads      blobs into a repository
pushing      an image into a registry
carrying     images between registries and this host's own
============ ========================================================================
"""
