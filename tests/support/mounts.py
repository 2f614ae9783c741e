"""Commands that see another file, or folder, in the place of one of the system."""

import os
import shlex
import subprocess

import pytest


def mounting(*arguments: str) -> list[str]:
    """What to put before a command for which alone `mount` is called with these arguments."""
    script = f'mount {shlex.join(arguments)} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if os.geteuid() != 0 or subprocess.run([*command, "true"]).returncode != 0:
        pytest.skip("nothing can be mounted here")
    return command
