"""softmaxloss beside its peers: `python -m benchmarks dense` for time, `... memory` for memory, `... accuracy`."""
