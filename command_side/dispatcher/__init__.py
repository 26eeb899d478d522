"""Hands queued tasks to workers, and moves on what nobody else would: due retries, lost attempts.

    log ──► relay ──► outstanding (PostgreSQL) ──► sweeper ──► log
              └─────► streams (Redis)

`main` is the composition root; `outstanding` and `leases` are pure.
"""
