"""Why is it not running? A causal answer from a task's events and what surrounds it, with the evidence.

gather.py   asks the log, the leases and the read tables
facts.py    what it found
reasons.py  facts -> causes, in their order. Pure, as all below
waiting.py, attempt.py   what holds a task that waits; how one runs, or ended
causes.py   what a cause is, and what all of them share
"""
