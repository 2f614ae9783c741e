"""Platforms send signals every day."""

import time
from pathlib import Path

from server import ROOT, Server


def test_a_stop_that_finds_a_worker_starting_is_obeyed(tmp_path: Path) -> None:
    config = tmp_path / "conf.py"
    config.write_text(
        f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n"
        "import os\n"
        "ours = post_fork\n"
        "def post_fork(server, worker):\n"
        "    ours(server, worker)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    server = Server(tmp_path, config=config)
    deadline = time.monotonic() + 10
    while "Worker exiting" not in server.log_file.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.stop() == 0
    assert time.monotonic() < deadline
