import pytest

from fedprune.structure.edits import Edit, from_json, to_json


def test_edits_come_back_from_their_line():
    edits = (Edit("head", "a.b", (1, 4)), Edit("share", "c", (), "a.b"), Edit("neuron", "d"))
    assert from_json(to_json(edits)) == edits
    assert from_json(to_json(())) == ()


@pytest.mark.parametrize("text", ['[{"kind": "head"}]', '[{"kind": "a", "kept": 3}]', "[1]"])
def test_what_is_no_list_of_edits_is_refused(text):
    with pytest.raises(ValueError, match="no list of edits"):
        from_json(text)
