"""The shared language: what happened to a task, and the log that keeps it.

Nothing here imports another of our packages. The other sides meet in this one.
"""
