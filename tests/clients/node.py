"""Node.js tools, which ask nothing of the network."""

import os
import subprocess
from pathlib import Path

from support.server import ROOT

HERE = Path(__file__).parent
EXAMPLE = ROOT / "examples" / "typescript"
SECRET = "a secret of the tests, of 32 bytes or more"
# No telemetry and no question about updates; whatever asks all the same reaches nobody.
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "REDOCLY_TELEMETRY": "off",
    "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
    "npm_config_update_notifier": "false",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "NO_COLOR": "1",
}


class Tools:
    """The commands in a folder's `node_modules`."""

    def __init__(self, packages: Path, home: Path) -> None:
        self.environment = OFFLINE | {
            "HOME": str(home),
            "PATH": f"{packages / 'node_modules' / '.bin'}:{os.environ['PATH']}",
        }

    def run(
        self, folder: Path, *command: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
