"""The same run in this process, without Flower: quick, and a debugger stops in your training.

``python -m fedprune.starter.simulate runs/first`` keeps everything in that folder; without a name
nothing is kept.
"""

from __future__ import annotations

import sys

from fedprune.library.federating import federate
from fedprune.starter.client_app import train
from fedprune.starter.server_app import OPTIONS
from fedprune.starter.task import TASK

if __name__ == "__main__":
    folder = sys.argv[1] if sys.argv[1:] else None
    print(federate(TASK, train=train, folder=folder, progress=True, **OPTIONS).summary)
