"""What is counted, and how it is told."""

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from taskledger import metrics
from taskledger.http import install
from taskledger.operator_routes import add_metrics


def told() -> dict[str, float]:
    """Every sample, by its name and labels."""
    body, _ = metrics.exposition()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def test_an_api_counts_its_refusals_by_code_and_tells() -> None:
    app = FastAPI(docs_url=None, redoc_url=None)
    install(app)
    add_metrics(app)
    assert "/metrics" not in app.openapi()["paths"]
    sample = "taskledger_api_refusals_total[('code', 'not_found')]"
    before = told().get(sample, 0)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        for _ in range(3):
            assert (await client.get("/nowhere")).status_code == 404
        answer = await client.get("/metrics")
        modern = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["cache-control"] == "no-store"
    assert 'taskledger_api_refusals_total{code="not_found"}' in answer.text
    assert modern.text.endswith("# EOF\n")
    assert told()[sample] == before + 3


def test_a_process_tells_nothing_that_is_not_its_own() -> None:
    metrics.LAG.clear()
    assert not any(name.startswith("taskledger_lag_events") for name in told())
    metrics.LAG.labels("relay").set(7)
    assert told()["taskledger_lag_events[('follower', 'relay')]"] == 7
    metrics.LAG.clear()
    assert not any("_created" in name for name in told())
