"""Creates the table."""

import os

import psycopg

with psycopg.connect(os.environ["DSN"]) as connection:
    connection.execute("CREATE TABLE results (id text PRIMARY KEY, result jsonb NOT NULL)")
