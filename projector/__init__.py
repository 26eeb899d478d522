"""Turns the log into read tables, and proves that they are what the log says."""
