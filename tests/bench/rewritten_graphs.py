"""How many casts TensorFlow's rewrite put into the steps of three models, of which it is to be the
second's only. A process of its own: what TensorFlow tells of graphs is told of all of a process.
"""

import json

import tensorflow as tf
from tensorflow.python.eager import context

from deepseek_hpf.adapters.synthetic_batch import synthetic_batch
from deepseek_hpf.bench.building import build_under
from deepseek_hpf.bench.contenders import keras_contender
from deepseek_hpf.bench.graph_rewrite_tensorflow import rewriting
from deepseek_hpf.bench.other_models import mlp


def rewritten_casts(step) -> int:
    """Casts by the rewrite in the graphs that the runtime optimizes in a step."""
    context.enable_run_metadata()
    try:
        step()
        metadata = context.export_run_metadata()
    finally:
        context.disable_run_metadata()
    graphs = [each.post_optimization_graph for each in metadata.function_graphs]
    return sum("AutoMixedPrecision" in node.name for graph in graphs for node in graph.node)


def switched_on() -> list[str]:
    """The experimental options of TensorFlow's graph optimizer that are on."""
    return sorted(name for name, on in tf.config.optimizer.get_experimental_options().items() if on)


def main() -> None:
    models = [build_under("float32", lambda: mlp(64, 2, 64)) for _ in range(3)]
    batch = synthetic_batch(models[0], rows=64)
    steps = [keras_contender(model, batch).step for model in models]
    before = switched_on()
    casts = [rewritten_casts(each) for each in (steps[0], rewriting(steps[1]), steps[2])]
    print(json.dumps({"casts": casts, "before": before, "after": switched_on()}))


if __name__ == "__main__":
    main()
