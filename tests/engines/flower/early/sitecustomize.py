"""Python imports this before a program: an app process of Flower's hands over to `forking`."""

import json
import os
import socket
import sys
from pathlib import Path

if len(sys.orig_argv) > 1 and Path(sys.orig_argv[1]).name in ("flwr-clientapp", "flwr-serverapp"):
    told = json.dumps([os.getpgrp(), sys.orig_argv[1:], str(Path.cwd()), {**os.environ}])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ["FORKING"])
        socket.send_fds(server, [told.encode()], [1, 2])
    os._exit(0)
