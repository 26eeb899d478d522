"""Runs handlers: reads stream entries, starts their tasks in the log, executes, finishes, renews leases.

intake ── consumer (Redis) ── starter (log) ──> runner ── executor ── finish (log)
                                                   └── attempts <── leases (a thread of its own)
"""
