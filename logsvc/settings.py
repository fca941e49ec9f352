"""Settings of the service: read once at start from LOGSVC_* variables or a TOML file, then handed out in parts.

Variables win over the file. An unknown key stops the start; ``LOGSVC_URL`` and ``LOGSVC_API_KEY``
(the client's) and ``LOGSVC_TEST_*`` are none of the server's and ignored.

Not here: the client's settings (client.py).
"""

from __future__ import annotations
