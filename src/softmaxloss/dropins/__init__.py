"""Drop-ins for PyTorch, of which `softmaxloss.torch` is the public face."""
