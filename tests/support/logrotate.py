"""The real logrotate, which is in no Python package: found, or installed from Debian's when it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.elasticsearch import apt_install

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def program() -> str:
    """Return where it is.

    Raises:
        Unobtainable: If it is not there, and only somebody else can install it.
    """
    if shutil.which("logrotate", path=_PATH) is None:
        apt_install("logrotate")
    return shutil.which("logrotate", path=_PATH) or "logrotate"


def rotate(path: Path, options: Sequence[str], directory: Path) -> None:
    """Rotate a file now.

    Args:
        path: The file.
        options: What the configuration says of it, a line each.
        directory: For the configuration and logrotate's own state; nobody else may write to it.
    """
    configuration = directory / "logrotate.conf"
    configuration.write_text("\n".join([f"{path} {{", "rotate 1000", *options, "}", ""]))
    configuration.chmod(0o600)
    command = [program(), "--force", "--state", str(directory / "logrotate.state"), str(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
