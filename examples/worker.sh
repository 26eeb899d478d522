#!/bin/sh
# A worker in plain shell and curl: claims tasks of the kind "greet" ({"name": ...}), one at a time.
#
#   TASKLEDGER__EXTERNAL_KINDS='{"greet": {"queue": "external"}}' make run     # in one terminal
#   examples/worker.sh                                                         # in another
#   curl -s 127.0.0.1:8000/tasks -H 'Content-Type: application/json' \
#        -d '{"kind": "greet", "payload": {"name": "Ada"}}'                    # in a third
#
# Environment: TASKLEDGER_URL (http://127.0.0.1:8000), QUEUE (external), LEASE_SECONDS (15),
# MAX_TASKS (0: for ever). The answers are compact JSON, so that sed can take them apart; a worker
# that has jq at hand should use it.
set -u

url=${TASKLEDGER_URL:-http://127.0.0.1:8000}
queue=${QUEUE:-external}
lease=${LEASE_SECONDS:-15}
max=${MAX_TASKS:-0}
worker=shell-$(uname -n | tr -cd 'A-Za-z0-9._-')-$$
done_tasks=0
beats=

# The work itself: the task as JSON comes in, the result as JSON goes out, 1 says that it failed.
handle() {
    name=$(printf '%s' "$1" | sed -nE 's/.*"name":"(([^"\\]|\\.)*)".*/\1/p')
    [ -n "$name" ] || return 1
    printf '{"greeting": "Hello, %s!"}' "$name" # still escaped as it came
}

# post PATH BODY: prints the answer, then its status on a line of its own.
post() {
    printf '%s' "$2" | curl -sS --max-time 90 -w '\n%{http_code}' \
        -H 'Content-Type: application/json' --data-binary @- "$url$1"
}

# Renews the lease while the work goes on. Whatever else than 200 means: the attempt is not ours any more.
beat() {
    while sleep $((lease / 3 + 1)); do
        answer=$(post "/tasks/$1/heartbeat" "{\"attempt\": $2}") || continue
        case $answer in
        *'"cancel_requested":true'*200) kill -USR1 $$ ;;
        *409 | *404) return ;;
        esac
    done
}

finish() {
    [ -z "$beats" ] || kill "$beats" 2>/dev/null
    beats=
}

trap 'finish; exit 0' INT TERM
trap 'cancelled=1' USR1

while [ "$max" -eq 0 ] || [ "$done_tasks" -lt "$max" ]; do
    claim="{\"worker\": \"$worker\", \"kinds\": [\"greet\"], \"lease_seconds\": $lease, \"wait_seconds\": 20}"
    answer=$(post "/queues/$queue/claim" "$claim")
    case $answer in
    '{"tasks":[]}'*200) continue ;;
    *200) ;;
    *) # a server is away, or restarts: nothing is lost meanwhile
        printf '%s\n' "$answer" >&2
        sleep 2
        continue
        ;;
    esac
    id=$(printf '%s' "$answer" | sed -n 's/.*"tasks":\[{"id":"\([0-9a-f-]*\)".*/\1/p')
    attempt=$(printf '%s' "$answer" | sed -n 's/.*"tasks":\[{"id":"[0-9a-f-]*","attempt":\([0-9]*\).*/\1/p')

    cancelled=0
    beat "$id" "$attempt" &
    beats=$!
    if result=$(handle "$answer") && [ "$cancelled" -eq 0 ]; then
        path=complete
        body="{\"attempt\": $attempt, \"result\": $result}"
    else # after a cancel request this confirms it
        path=fail
        body="{\"attempt\": $attempt, \"error\": {\"type\": \"GreetError\", \"message\": \"nobody to greet\"}}"
    fi
    finish

    # Saying the same thing twice is harmless, so it is said until it is heard.
    until status=$(post "/tasks/$id/$path" "$body") && [ "${status##*
}" -lt 500 ]; do
        sleep 1
    done
    printf '%s %s: %s\n' "$path" "$id" "${status##*
}"
    done_tasks=$((done_tasks + 1))
done
