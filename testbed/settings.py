"""Settings for a part of the application in this process."""

from settings import Settings

SETTINGS = Settings(
    database_url="sqlite:////dev/null",
    database_schema="public",
    cors_origins=(),
    log_level="CRITICAL",
    host="127.0.0.1",
    port=0,
    workers=1,
    threads=5,
)
