"""OCI images: references, documents, where they come from, and their layers as one root."""
