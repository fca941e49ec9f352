"""gateway: the payment gateway of the demo; a line in, a line out, over TCP on loopback.

    python -m logsvc_demo.gateway --port-file FILE

It writes its port to FILE and answers until it is ended: that is the dependency that may fail.
"""

from __future__ import annotations

import argparse
import os
import socketserver
from pathlib import Path


class _Payments(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"ok " + line)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port-file", type=Path, required=True)
    args = parser.parse_args()
    with _Server(("127.0.0.1", 0), _Payments) as server:
        temporary = args.port_file.with_suffix(".tmp")
        temporary.write_text(str(server.server_address[1]))
        os.replace(temporary, args.port_file)
        server.serve_forever()


if __name__ == "__main__":
    main()
