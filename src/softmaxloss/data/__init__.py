"""Files in: data to train on, scores and labels to evaluate. Files out: whole, or not at all."""
