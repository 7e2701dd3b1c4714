"""Rules against layers: what is hit, which rule wins, what is said of a rule that hits nothing."""

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_hpf.config import PrecisionRule
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.rules import LayerNode, resolve_rules

pytestmark = pytest.mark.pure

NODES = [
    LayerNode("stem", "Conv2D"),
    LayerNode("encoder", "Encoder"),
    LayerNode("encoder/attention", "MultiHeadAttention", "encoder"),
    LayerNode("encoder/attention/query", "Dense", "encoder/attention"),
    LayerNode("encoder/bn", "BatchNormalization", "encoder"),
    LayerNode("decoder", "Decoder"),
    LayerNode("decoder/head", "Dense", "decoder"),
]


def rule(layers=None, layer_type=None, **values) -> PrecisionRule:
    return PrecisionRule(layers=layers, layer_type=layer_type, **(values or {"policy": "float32"}))


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule("stem"), ["stem"]),
        (rule("encoder/attention"), ["encoder/attention", "encoder/attention/query"]),
        (rule("*query"), ["encoder/attention/query"]),
        (rule("enc*"), [n.path for n in NODES[1:5]]),
        (rule("*"), [n.path for n in NODES]),
        (rule(layer_type="Dense"), ["encoder/attention/query", "decoder/head"]),
        (rule(layer_type="MultiHeadAttention"), ["encoder/attention", "encoder/attention/query"]),
        (rule(layer_type="dense"), []),
        (rule("decoder", "Dense"), ["decoder/head"]),
        (rule("encoder/attention/query", "Encoder"), ["encoder/attention/query"]),
        (rule("*query", "MultiHeadAttention"), ["encoder/attention/query"]),
        (rule("stem", "Dense"), []),
        (rule("Stem"), []),
        (rule("head"), []),
    ],
)
def test_hits_cover_descendants_and_types(one, expected):
    found = resolve_rules([one], NODES)
    assert list(found.hits[0]) == expected
    assert found.winner == dict.fromkeys(expected, 0)
    assert [u.index for u in found.unmatched] == ([] if expected else [0])


def test_the_last_rule_wins_key_by_key():
    found = resolve_rules(
        [
            rule("*", policy="mixed_bfloat16", kernel=True),
            rule("encoder", policy="float32"),
            rule("encoder", activations="int8"),
            rule("encoder/bn", policy=None, kernel=False),
        ],
        NODES,
    )
    assert found.setting("stem", "policy") == ("mixed_bfloat16", 0)
    assert found.setting("encoder", "policy") == ("float32", 1)
    assert found.setting("encoder", "activations") == ("int8", 2)
    assert found.setting("encoder", "kernel") == (True, 0)
    assert found.setting("encoder/bn", "policy") is None  # taken back
    assert found.setting("encoder/bn", "kernel") == (False, 3)
    assert found.setting("encoder/bn", "backward") is None
    assert found.setting("nowhere", "policy") is None
    assert found.winner["encoder"] == 2
    assert found.deciding("encoder") == {0, 1, 2}
    assert found.deciding("encoder/bn") == {2, 3}


def test_unmatched_rules_name_the_nearest_layer_in_one_warning():
    found = resolve_rules(
        [
            rule("decoder/haed"),
            rule("stem"),
            rule(layer_type="Dens"),
            rule("encoder", "BatchNormalisation"),
            rule("decodr*", "Dense"),
        ],
        NODES,
    )
    assert [(u.index, u.nearest_path) for u in found.unmatched] == [
        (0, "decoder/head"),
        (2, "encoder/attention/query"),
        (3, "encoder/bn"),
        (4, "decoder"),
    ]
    text = found.warning()
    assert text.startswith('4 rules match no layer: rules[0] (layers="decoder/haed"): the nearest')
    assert 'rules[3] (layers="encoder", layer_type="BatchNormalisation")' in text
    assert '"encoder/bn", a BatchNormalization' in text
    assert resolve_rules([rule("stem")], NODES).warning() is None


@pytest.mark.timeout(60)
def test_thousands_of_rules_and_layers_are_no_matter():
    nodes = [LayerNode(f"block_{i}/{'x' * 100}", "Dense") for i in range(2000)]
    rules = [rule(f"block_{i}/{'y' * 100}") for i in range(5000)]
    rules += [rule(node.path) for node in nodes]
    found = resolve_rules(rules, nodes)
    assert len(found.winner) == 2000
    assert len(found.unmatched) == 5000
    assert found.warning().endswith("… and 4990 more.")


def test_no_layers_and_no_rules():
    assert resolve_rules([], NODES).winner == {}
    found = resolve_rules([rule("a"), rule(layer_type="B")], [])
    assert [u.nearest_path for u in found.unmatched] == [None, None]
    assert found.warning() == (
        '2 rules match no layer: rules[0] (layers="a"); rules[1] (layer_type="B").'
    )


def test_ambiguous_paths_and_lost_parents_are_refused():
    with pytest.raises(ConfigError, match=r"Received twice: 'a'"):
        resolve_rules([], [LayerNode("a", "Dense"), LayerNode("a", "Dense")])
    with pytest.raises(ConfigError, match=r"parent='b'"):
        resolve_rules([], [LayerNode("a", "Dense", "b")])


trees = st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ABC")), max_size=6)
patterns = st.none() | st.text("/n012*?", min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(trees, patterns, st.sampled_from([None, "A", "B", "D"]))
def test_agrees_with_the_definition(tree, pattern, layer_type):
    if pattern is None and layer_type is None:
        return
    nodes: list[LayerNode] = []
    for place, (parent, kind) in enumerate(tree):
        above = nodes[parent].path if parent < len(nodes) else None
        path = f"n{place}" if above is None else f"{above}/n{place}"
        nodes.append(LayerNode(path, kind, above))
    by_path = {node.path: node for node in nodes}

    def self_and_ancestors(node):
        while node is not None:
            yield node
            node = by_path.get(node.parent)

    def is_hit(node):
        chain = list(self_and_ancestors(node))
        return (pattern is None or any(fnmatch.fnmatchcase(n.path, pattern) for n in chain)) and (
            layer_type is None or any(n.class_name == layer_type for n in chain)
        )

    found = resolve_rules([rule(pattern, layer_type)], nodes)
    assert list(found.hits[0]) == [node.path for node in nodes if is_hit(node)]
