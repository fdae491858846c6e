"""The calls that XLA makes to the kernels: see native/xla.cpp. Built only where XLA's headers were found."""

handlers: dict[str, object]  # PyCapsules, by the names to register them under
