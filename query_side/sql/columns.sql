t.id, t.created_position, t.tenant, t.kind, t.status, t.queue, t.priority, t.tags, t.payload,
t.result, t.error, t.attempt, t.max_attempts, t.version, t.position, t.created_at, t.run_at,
t.started_at, t.finished_at, t.worker, l.progress, l.note
