"""The project's own golden values: what some small experiments come to, kept as numbers."""
