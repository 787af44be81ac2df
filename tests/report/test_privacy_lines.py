from fedprune.config import configure
from fedprune.protocol.releases import OPEN
from fedprune.report.privacy_lines import after, before

TOLD = {"delta": 1e-5, "epsilon": 3.2, "total": 3.2, "reasons": [], "unit": "client"}
TOLD |= {"relation": "replace-one"}
MLP = {"task": "digits", "model": "mlp", "clients": 6, "cohort": 4}


def test_a_run_says_what_it_will_hide():
    assert before(configure({"task": "digits"})) == []
    c = configure({**MLP, "dp": "client", "dp_noise": 2.0, "panel": 2})
    noise, panel = before(c)
    assert "hides the part of a client: 2 on changes, 2 on scores; no budget, delta 1e-05" in noise
    assert "the last 2 clients measure" in panel
    sums, helped, all_, keys = before(configure({**MLP, "cohort": 4, "secure": "secagg"}))
    assert "secure" in sums
    assert "1 of a client's 3 neighbours help it (of a cohort of 4, 2 shares open one)" in helped
    assert all_.strip() == "in a sum of all, 6 clients, at least 3 of 5 (of 4 shares)"
    assert "simulated: they follow from the seed" in keys
    noised = {**MLP, "dp": "client", "dp_noise": 2.0, "secure": "secagg", "panel": 3, "cohort": 3}
    said = "\n".join(before(configure(noised)))
    assert "of a cohort of 3" in said
    assert "in a sum of" not in said, "the panel is as large as the cohort, and all measure nothing"


def test_a_run_says_what_it_came_to():
    told = TOLD
    assert after({}) == []
    (line,) = after({"privacy": told})
    assert line == "privacy   epsilon 3.2 at delta 1e-05: one client, replace-one"
    (line,) = after({"privacy": told | {"total": "infinity", "reasons": [OPEN]}})
    assert "infinite (of what is covered: 3.2 at delta 1e-05): released without noise" in line
    nothing = {"epsilon": "infinity", "total": "infinity", "reasons": [OPEN]}
    (line,) = after({"privacy": told | nothing})
    assert line == "privacy   epsilon infinite: released without noise", "nothing was noised"
    first, _ = after({"privacy": told | {"stopped": "round 3 of 9 would exceed epsilon=4"}})
    assert first == "STOPPED   round 3 of 9 would exceed epsilon=4"


def test_noise_on_what_is_measured_is_said_before_and_after():
    noise, measured = before(configure({**MLP, "dp": "client", "dp_noise": 2.0}))
    assert "standard deviation 6.67: little but noise; --panel N" in measured  # 2 x 20 / 6
    first, _ = after({"privacy": TOLD | {"metrics_sd": 6.67}})
    assert first == "NOISED    every figure measured has noise of standard deviation 6.67"
    assert noise.startswith("  noise")
