"""One module for each step of the schema, in order. A step that was released never changes."""
