"""Whether a `.keras` file keeps the policy of a layer."""

import keras

# Their configuration holds those of the layers inside, policies included.
_SAVE_THEIR_LAYERS = (
    keras.Sequential,
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.StackedRNNCells,
)


def is_saved(parent: keras.Layer, policy: str, parent_policy: str) -> bool:
    """Whether Keras brings back the policy of a layer that `parent` holds.

    A composite layer of Keras makes its layers anew, with its own policy; a subclassed model makes
    them in its constructor, under whatever policy is global then.

    Args:
        parent: The layer or model that holds it.
        policy: Name of the layer's policy.
        parent_policy: Name of the parent's.

    Returns:
        Whether the file keeps it, as far as this depends on the parent.
    """
    if hasattr(parent, "_operations") or isinstance(parent, _SAVE_THEIR_LAYERS):
        return True
    if type(parent) is keras.layers.RNN:
        return True
    return type(parent).__module__.startswith("keras.") and policy == parent_policy
