"""Methods of one instance, replaced for a while: no class is patched."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class _Replacement:
    """A method put in place of another, which knows what was there before."""

    def __init__(self, method: Callable[..., Any], before: object):
        self.method, self.before = method, before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)


@contextlib.contextmanager
def replaced(instance: object, name: str, method: Callable[..., Any] | None) -> Iterator[None]:
    """Replaces a method of one instance for a while; with None, does nothing.

    Replicas are traced in turns, so that one may come here before another has left: what was
    there before is what no replica has put there.
    """
    if method is None:
        yield
        return
    # Around `__setattr__`, by which Keras and TensorFlow track what an optimizer holds.
    own = instance.__dict__
    before = own.get(name)
    if isinstance(before, _Replacement):
        before = before.before
    own[name] = _Replacement(method, before)
    try:
        yield
    finally:
        if before is None:
            own.pop(name, None)
        else:
            own[name] = before
