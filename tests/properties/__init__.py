"""Properties: whatever happens, in whatever order, these hold. See conftest.py for long runs."""
