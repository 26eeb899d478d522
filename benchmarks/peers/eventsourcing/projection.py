"""The library's own runner."""

import tasks
from eventsourcing.projection import ProjectionRunner

with ProjectionRunner(
    application_class=tasks.Tasks,
    projection_class=tasks.TasksProjection,
    view_class=tasks.ReadTable,
    env=tasks.environment(2),
) as runner:
    runner.run_forever()
