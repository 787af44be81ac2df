"""Python imports this before a program: an app process of Flower's hands over to `forking`.

A SuperNode looks for work twice a second, and is missed 20 seconds after it was last heard of, the
least that a SuperLink takes: each is a sixth and a third of what Flower waits otherwise.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

PROGRAM = Path(sys.orig_argv[1]).name if len(sys.orig_argv) > 1 else ""

if PROGRAM in ("flwr-clientapp", "flwr-serverapp", "flwr-simulation"):
    told = json.dumps([os.getpgrp(), sys.orig_argv[1:], str(Path.cwd()), {**os.environ}])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ["FORKING"])
        socket.send_fds(server, [told.encode()], [1, 2])
    os._exit(0)

if PROGRAM == "flower-supernode":
    from flwr.common import constant

    constant.HEARTBEAT_DEFAULT_INTERVAL = constant.HEARTBEAT_MIN_INTERVAL
    time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.5))
