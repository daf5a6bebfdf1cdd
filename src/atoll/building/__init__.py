"""Building images in a machine of Atoll's own, in which buildah runs."""
