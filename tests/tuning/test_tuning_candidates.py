import pytest

from deepseek_hpf.scheduling.rules import LayerNode, resolve_rules
from deepseek_hpf.tuning.candidates import Candidate, blanket, with_islands

LOW = "mixed_bfloat16"
NODES = [
    LayerNode("stem", "Conv2D"),
    LayerNode("relu", "ReLU"),
    LayerNode("block", "Block"),
    LayerNode("block/relu[1]", "ReLU", "block"),
    LayerNode("block/attention", "MultiHeadAttention", "block"),
    LayerNode("block/attention/query", "EinsumDense", "block/attention"),
    LayerNode("head", "Dense"),
]
# The block computes nothing that is decided on, and what attention holds goes with it.
UNITS = ["stem", "relu", "block/relu[1]", "block/attention", "head"]


def policies_under(candidate):
    found = resolve_rules(candidate.config.rules, NODES)
    assert not found.unmatched
    said = {node.path: found.setting(node.path, "policy") for node in NODES}
    return {path: LOW if setting is None else setting[0] for path, setting in said.items()}


@pytest.mark.parametrize(
    ("full", "rules"),
    [
        ([], 0),
        (["relu", "block/relu[1]"], 1),
        (["block/relu[1]"], 1),
        (["block/attention"], 1),
        (["stem", "relu", "block/relu[1]", "block/attention", "head"], 4),
    ],
)
def test_rules_say_what_was_decided_in_few_words(full, rules):
    present = dict.fromkeys(UNITS, LOW)
    made = with_islands(
        blanket(LOW, kernels=True),
        "mixed",
        {**present, **dict.fromkeys(full, "float32")},
        present,
        NODES,
    )
    assert len(made.config.rules) == rules
    expected = dict.fromkeys([node.path for node in NODES], LOW) | dict.fromkeys(full, "float32")
    if "block/attention" in full:
        expected["block/attention/query"] = "float32"
    assert policies_under(made) == expected
    assert not made.is_blanket
    assert made.config.kernels


def test_a_type_keeps_single_rules_where_one_of_its_layers_is_not_decided_on():
    nodes = [*NODES, LayerNode("other", "ReLU")]
    present = dict.fromkeys(UNITS, LOW)
    wanted = {**present, "relu": "float32", "block/relu[1]": "float32"}
    made = with_islands(blanket(LOW, kernels=False), "mixed", wanted, present, nodes)
    assert [rule.layers for rule in made.config.rules] == ["relu", "block/relu[[]1]"]


def test_what_is_in_float32_already_needs_no_rule_and_does_not_stand_in_the_way():
    nodes = [*NODES, LayerNode("hidden", "Dense")]
    present = {**dict.fromkeys(UNITS, LOW), "hidden": LOW, "head": "float32"}
    wanted = {**present, "hidden": "float32"}
    made = with_islands(blanket(LOW, kernels=False), "mixed", wanted, present, nodes)
    assert [(rule.layers, rule.layer_type) for rule in made.config.rules] == [(None, "Dense")]


def test_a_candidate_survives_json():
    one = Candidate("mixed", blanket(LOW, kernels=True).config, predicted=1.25, spread=(1.0, 2.0))
    assert Candidate.from_dict(one.to_dict()) == one
    older = {k: v for k, v in one.to_dict().items() if k != "predicted"}
    assert Candidate.from_dict(older).predicted is None
