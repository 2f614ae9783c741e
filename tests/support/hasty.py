"""The application with deadlines that are a quarter of the real ones, for tests that wait for them.

A test of the real ones is beside each, among the slow.
"""

from app import create_app
from database import base, hosts, postgres, sqlite
from server import worker

DEADLINES = {
    base: ["REQUEST_TIMEOUT_S", "SCHEMA_WAIT_S", "UPGRADE_CHECK_S"],
    hosts: ["SILENT_HOST_S"],
    postgres: ["CONNECT_TIMEOUT_S", "STATEMENT_TIMEOUT_S", "MARGIN_S", "MIN_TIME_LEFT_S"],
    sqlite: ["LOCK_TIMEOUT_S"],
    worker: ["CLIENT_TIMEOUT_S", "STOP_TIMEOUT_S"],
}

for module, names in DEADLINES.items():
    for name in names:
        setattr(module, name, getattr(module, name) / 4)

__all__ = ["create_app"]
