# One image for every process: `taskledger <command>`. The embedded servers are not in it.
FROM python:3.13.9-slim-trixie AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/taskledger
ENV PATH=/opt/taskledger/bin:$PATH
WORKDIR /src
COPY requirements/image.lock requirements/image.lock
RUN pip install --require-hashes -r requirements/image.lock
COPY pyproject.toml README.md LICENSE ./
COPY events events
COPY taskledger taskledger
COPY command_side command_side
COPY projector projector
COPY query_side query_side
COPY examples examples
RUN pip install --no-deps --no-build-isolation . \
    && pip uninstall --yes pip \
    && python -m compileall -q /opt/taskledger

FROM python:3.13.9-slim-trixie

RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin taskledger
COPY --from=build /opt/taskledger /opt/taskledger
ENV PATH=/opt/taskledger/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TASKLEDGER__LOG_FORMAT=json \
    TASKLEDGER__HEALTH__PORT=8002
WORKDIR /srv
USER 10001:10001
STOPSIGNAL SIGTERM
# For the processes without an API; docker-compose.yml asks the APIs at their own ports.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["taskledger", "check", "http://127.0.0.1:8002/health/live"]
ENTRYPOINT ["taskledger"]
CMD ["--help"]
