// A worker in JavaScript: Node 18 or later, nothing to install. Claims tasks of the kind "greet".
//
//   TASKLEDGER__EXTERNAL_KINDS='{"greet": {"queue": "external"}}' make run     # in one terminal
//   node examples/worker.mjs                                                   # in another
//   curl -s 127.0.0.1:8000/tasks -H 'Content-Type: application/json' \
//        -d '{"kind": "greet", "payload": {"name": "Ada"}}'                    # in a third
//
// Environment: TASKLEDGER_URL (http://127.0.0.1:8000), QUEUE (external), LEASE_SECONDS (15),
// MAX_TASKS (0: for ever), CONCURRENCY (4).

import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";

const url = process.env.TASKLEDGER_URL ?? "http://127.0.0.1:8000";
const queue = process.env.QUEUE ?? "external";
const leaseSeconds = Number(process.env.LEASE_SECONDS ?? 15);
const maxTasks = Number(process.env.MAX_TASKS ?? 0);
const concurrency = Number(process.env.CONCURRENCY ?? 4);
const worker = `node-${hostname().replace(/[^A-Za-z0-9._-]/g, "")}-${process.pid}`;

const handlers = {
  async greet({ name }, signal) {
    if (typeof name !== "string" || name === "") throw new TypeError("nobody to greet");
    signal.throwIfAborted(); // long work looks at it now and then
    return { greeting: `Hello, ${name}!` };
  },
};

const stopping = new AbortController();
for (const name of ["SIGINT", "SIGTERM"]) process.once(name, () => stopping.abort());

/** The answer to a command, its status included. Throws only when there is no answer at all. */
async function post(path, body, signal) {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  return { status: response.status, body: await response.json() };
}

/** Says the same thing until it is heard: repeating a command whose effect holds changes nothing. */
async function report(path, body) {
  for (let pause = 200; ; pause = Math.min(2 * pause, 5000)) {
    try {
      const answer = await post(path, body);
      if (answer.status < 500 && answer.status !== 429) return answer;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch: no connection
    }
    await sleep(Math.random() * pause);
  }
}

/** Renews the lease until `done`; aborts the work when it is cancelled or no longer ours. */
async function renew(task, work, done) {
  const aborted = new Promise((resolve) => done.addEventListener("abort", resolve, { once: true }));
  while (!done.aborted) {
    await Promise.race([aborted, sleep((leaseSeconds * 1000) / 3, undefined, { ref: false })]);
    if (done.aborted) return;
    const { status, body } = await report(`/tasks/${task.id}/heartbeat`, { attempt: task.attempt });
    if (status === 404 || status === 409) return work.abort(new Error("the attempt was taken over"));
    if (body.cancel_requested) return work.abort(new Error("cancelled"));
  }
}

async function run(task) {
  const work = new AbortController();
  const done = new AbortController();
  const timeout = setTimeoutFor(task, work);
  const renewing = renew(task, work, done.signal);
  let outcome;
  try {
    const result = await handlers[task.kind](task.payload, work.signal);
    outcome = ["complete", { attempt: task.attempt, result }];
  } catch (error) {
    const { name: type, message, stack: traceback } = error;
    outcome = ["fail", { attempt: task.attempt, error: { type, message, traceback } }];
  } finally {
    clearTimeout(timeout);
    done.abort();
    await renewing;
  }
  const answer = await report(`/tasks/${task.id}/${outcome[0]}`, outcome[1]);
  console.log(outcome[0], task.id, answer.status, answer.body.status ?? answer.body.code);
}

function setTimeoutFor(task, work) {
  // Node's timers hold 31 bits of milliseconds.
  const milliseconds = Math.min(task.timeout_seconds * 1000, 2 ** 31 - 1);
  return globalThis.setTimeout(() => work.abort(new Error("timed out")), milliseconds);
}

async function main() {
  const running = new Set();
  let taken = 0;
  while (!stopping.signal.aborted && (maxTasks === 0 || taken < maxTasks)) {
    if (running.size >= concurrency) {
      await Promise.race(running);
      continue;
    }
    const free = concurrency - running.size;
    const limit = maxTasks === 0 ? free : Math.min(free, maxTasks - taken);
    const claim = { worker, kinds: Object.keys(handlers), limit, lease_seconds: leaseSeconds, wait_seconds: 20 };
    try {
      const { status, body } = await post(`/queues/${queue}/claim`, claim, stopping.signal);
      if (status !== 200) throw new TypeError(`${status} ${body.code}: ${body.detail}`);
      for (const task of body.tasks) {
        taken += 1;
        const running_task = run(task).finally(() => running.delete(running_task));
        running.add(running_task);
      }
    } catch (error) {
      if (stopping.signal.aborted) break;
      console.error("claim:", error.message); // a server is away, or restarts: nothing is lost meanwhile
      await sleep(1000 + Math.random() * 1000);
    }
  }
  await Promise.all(running);
}

await main();
