"""How a layer keeps, in fewer bytes, what its backward pass needs."""
