"""The limit of what accepts."""
