"""From a source file to pixels and fields: one module per kind of file."""
