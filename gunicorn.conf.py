"""How the application is served."""

import logs
from settings import read_settings

settings = read_settings()

bind = f"{settings.host}:{settings.port}"
worker_class = "gthread"
workers = settings.workers
threads = settings.threads
http_parser = "python"
logger_class = logs.ServerLogger
loglevel = settings.log_level.lower()
limit_request_line = 8190
forwarder_headers = ""
control_socket_disable = True
worker_tmp_dir = "/dev/shm"
