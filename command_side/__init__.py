"""The only writer of events: decides what follows from a command and appends it."""
