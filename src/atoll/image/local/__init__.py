"""Images that are at hand already: archives, layouts, directories, other engines; and giving images away."""
