"""Named machines: what the user asked for, what is, and the way between them."""
