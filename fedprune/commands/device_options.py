"""What ``fedprune devices`` takes."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable

EXAMPLES = """\
  fedprune devices certificates ~/flower --names server.example,192.0.2.7
  fedprune devices superlink ~/flower --host 0.0.0.0
  fedprune devices certificates ~/flower --keys 0          # on the device
  fedprune devices register 0.pub ~/flower --superlink server.example:8000
  fedprune devices node ~/flower --superlink server.example:8000 --config 'partition-id=0 data="/a"'
  fedprune devices run ~/flower 'task="digits" clients=2' --superlink server.example:8000
  fedprune devices status runs/digits-20261128-120000
"""

_SUMMARIES = {
    "certificates": "Makes a certificate authority, the server's certificate and keys of devices.",
    "superlink": "Starts Flower's SuperLink, to which devices and runs connect.",
    "node": "Starts Flower's SuperNode: this machine as a device with data of its own.",
    "register": "Tells the SuperLink the public key of a device.",
    "run": "Runs this app on the devices of a SuperLink; the exit code says if it succeeded.",
    "status": "State of a run and how to continue it. Exit code 0: it ended as asked; 1: not.",
}


def device_options(parser: ArgumentParser) -> None:
    """Put the arguments of ``fedprune devices`` on its parser."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    made = {
        name: what.add_parser(
            name,
            help=text,
            description=f"{text} Prints every command before it runs it.",
            allow_abbrev=False,
        )
        for name, text in _SUMMARIES.items()
    }
    _certificates(made["certificates"])
    _superlink(made["superlink"])
    _node(made["node"])
    _register(made["register"])
    _run(made["run"])
    made["status"].add_argument("folder", metavar="FOLDER", help="of the run")


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:9]) <= most:
            raise ArgumentTypeError(f"{text!r}: allowed: a whole number, {least} to {most}")
        return int(text)

    return number


def _folder(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder that `devices certificates` made")


def _client(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--superlink", metavar="HOST:PORT", required=True, help="where the SuperLink listens"
    )
    _insecure(parser)


def _insecure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--insecure", action="store_true", help="no TLS: on 127.0.0.1 only, for a first try"
    )


def _certificates(parser: ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument(
        "--names",
        metavar="A,B",
        default="",
        help="names and addresses of the server: its certificate, by the authority in FOLDER, "
        "which is made where there is none",
    )
    parser.add_argument(
        "--keys", metavar="P,Q", default="", help="partitions: a key for each, FOLDER/P and P.pub"
    )
    parser.add_argument(
        "--days",
        metavar="N",
        type=_between(1, 3650),
        default=365,
        help="that the server's certificate is good for (365)",
    )


def _superlink(parser: ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    _port(parser, 8000)
    _insecure(parser)


def _node(parser: ArgumentParser) -> None:
    _folder(parser)
    _client(parser)
    parser.add_argument(
        "--config",
        metavar="TEXT",
        required=True,
        help="Flower's --node-config: partition-id, data, floors (docs/devices.md)",
    )
    _port(parser, 9094)


def _port(parser: ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--port", metavar="N", type=_between(1, 65535), default=default, help=f"({default})"
    )


def _register(parser: ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY.pub", help="public key of the device")
    _folder(parser)
    _client(parser)
    parser.add_argument("--name", metavar="NAME", help="of the device, as rows name it")


def _run(parser: ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument(
        "config", metavar="RUN_CONFIG", help="options as Flower writes them: 'task=\"digits\"'"
    )
    _client(parser)
    parser.add_argument("--app", metavar="FOLDER", default=".", help="with the app (.)")
