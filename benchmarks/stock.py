"""The other side of `engine.py`: Flower's simulation as it is meant to be used.

One SuperNode per client, one message to each and one reply from each; all replies arrive at the
server, which adds them up in float64. What a client does is
`fedprune.client.partition_answers.released`, what the server does with a reply are the functions
that our hosts call: only the way between differs.
Kind to Flower: a message holds one buffer, not a state dict, built once for everyone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedprune.client.host import Host, build_host
from fedprune.client.partition_answers import released
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig, recorded, to_toml
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import decode_question, encode_question
from fedprune.protocol.checks import check_summand
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.parts import decode_answer
from fedprune.protocol.running_sum import as_sum
from fedprune.structure.layout import Layout

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Decode the question, answer it for this node's partition, encode the answer."""
    config, packet = _opened(message)
    host = _host(str(config["toml"]))
    partition = int(context.node_config["partition-id"])
    answer = released(host, decode_question(packet, host.layout), partition)
    return Message(_content(answer, {"partition": partition}), reply_to=message)


@functools.lru_cache(maxsize=1)
def _host(toml: str) -> Host:
    return build_host(recorded(toml))


def asker(grid: Grid, config: RunConfig, layout: Layout) -> Callable[[Question], Aggregate]:
    """A function that puts a question to every client and adds up their answers."""
    while len(list(grid.get_node_ids())) < config.clients:
        time.sleep(0.1)
    nodes = list(grid.get_node_ids())

    def ask(question: Question) -> Aggregate:
        content = _content(encode_question(question, config.wire), {"toml": to_toml(config)})
        messages = [Message(content, node, "train") for node in nodes]
        replies = {}
        for reply in grid.send_and_receive(messages):
            about, packet = _opened(reply)
            replies[int(str(about["partition"]))] = packet
        total, form = Aggregate(), form_of(question, config, layout)
        for partition in sorted(replies):
            total = _added(total, replies.pop(partition), partition, question, form)
        return total

    return ask


def _added(
    total: Aggregate, packet: Packet, partition: int, question: Question, form: Form
) -> Aggregate:
    given = decode_answer(packet, question, form.voters)
    check_summand(given.values, given.weight, given.totals, form)
    return as_sum(given, partition, packet.size(), total)


def _content(packet: Packet, about: dict[str, str | int]) -> RecordDict:
    buffers = {name: bytes(data) for name, data in packet.buffers.items()}
    arrays = {name: Array("uint8", (len(b),), "bytes", b) for name, b in buffers.items()}
    config = ConfigRecord({**about, "head": bytes(packet.head).decode()})
    return RecordDict({"config": config, "arrays": ArrayRecord(arrays)})


def _opened(message: Message) -> tuple[ConfigRecord, Packet]:
    config = message.content.config_records["config"]
    arrays = message.content.array_records["arrays"]
    buffers = {name: array.data for name, array in arrays.items()}
    return config, Packet({"head": config["head"]}, buffers)
