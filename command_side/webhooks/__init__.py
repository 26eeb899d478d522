"""Completion webhooks: a follower of the log that sends what happened to whoever asked for it."""
