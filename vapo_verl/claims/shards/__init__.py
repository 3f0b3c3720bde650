"""Claims on disk: append-only shards that survive a kill at any moment."""
