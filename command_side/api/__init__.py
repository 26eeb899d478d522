"""The command API: HTTP in, events out."""
