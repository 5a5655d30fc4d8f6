"""Everything of a node that may block: processes, sockets, files. The cores know nothing of it."""
