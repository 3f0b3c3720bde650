"""Training data: the row format, its checks, importers, and veRL's dataset adapter."""
