"""Methods that learn inside the towers and nothing beside them."""
