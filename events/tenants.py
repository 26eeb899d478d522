"""Tenants, apart from events.ids so that the pure core need not import what draws random numbers."""

DEFAULT_TENANT = "default"
