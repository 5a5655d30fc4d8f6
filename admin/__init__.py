"""vmq-admin: the admin command line. Speaks to a node through its admin socket and knows nothing of its insides."""
