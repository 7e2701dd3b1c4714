"""Runs whose decisions are written down beforehand, and models that tell in what they compute."""

import keras
import numpy as np

from deepseek_hpf.scheduling.controllers.controller import Controller
from deepseek_hpf.scheduling.events import Event

BACKEND = keras.backend.backend()
EAGER = BACKEND == "torch"  # calls the model at every step


class Scripted(Controller):
    """Goes to given levels before given steps, and keeps what it is told."""

    name = "scripted"

    def __init__(self, space, moves):
        super().__init__(space.base)
        self.space, self.moves = space, moves
        self.told = []

    def is_due(self, step, epoch):
        return step in self.moves and self.space.plan(self.moves[step]) != self.plan

    def observe(self, telemetry):
        self.told.append(telemetry)
        self.events = ()
        if not self.is_due(telemetry.step, telemetry.epoch):
            return None
        plan = self.space.plan(self.moves[telemetry.step])
        event = Event(step=telemetry.step, kind="explore", reason="as told", plan=plan.digest())
        return self._go_to(plan, event)

    def get_state(self):
        levels = [self.space.bottom, *self.moves.values()]
        plans = [self.space.plan(each) for each in levels]
        return {"levels": list(levels[plans.index(self.plan)])}

    def set_state(self, state):
        self.plan, self.events = self.space.plan(tuple(state["levels"])), ()


def scripted(moves, made=None):
    """A function that makes a `Scripted`, and adds it to a list."""

    def make(space, config):
        controller = Scripted(space, moves)
        if made is not None:
            made.append(controller)
        return controller

    return make


class Spy(keras.layers.Layer):
    """Notes the dtype of what it is given, at each trace."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, x, training=False):
        if not isinstance(x, keras.KerasTensor):
            dtype = keras.backend.standardize_dtype(x.dtype)
            self.seen.append(("train" if training else "infer", dtype))
        return x


class Fresh(keras.callbacks.Callback):
    """Forgets what a spy saw before the training, such as the symbolic build."""

    def __init__(self, spy):
        super().__init__()
        self.spy = spy

    def on_train_begin(self, logs=None):
        self.spy.seen.clear()


def create_model(spy=None, *, built=True, dropout=0.25, optimizer="sgd", **options):
    """Two blocks under a policy that is not float32, `hidden` with what is beside it, and `mid`."""
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Dense(6, name="hidden", activation="tanh"),
        *([spy] if spy else []),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(dropout, name="dropout"),
        keras.layers.Dense(5, name="mid", activation="tanh"),
        keras.layers.Dense(1, name="head"),
    ]
    model = keras.Sequential([*([keras.Input((3,))] if built else []), *layers])
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    return model


def data(rows=32):
    random = np.random.default_rng()
    x = random.normal(size=(rows, 3)).astype("float32")
    return x, np.tanh(x[:, :1]) + 0.1


def fit(model, x, y, *callbacks, **options):
    options = {"batch_size": 4, "verbose": 0, "shuffle": False, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def bits(model):
    """All that training changes, as bytes; what the watch has measured left out."""
    watched = {id(v) for v in model.optimizer.watch.variables}
    variables = [*model.variables, *(v for v in model.optimizer.variables if id(v) not in watched)]
    values = [keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(v)) for v in variables]
    return [value.tobytes() for value in values]
