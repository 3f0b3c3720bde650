"""Short true or false claims about images: making them, checking them, putting them into rows."""
