"""Networks of published checkpoints, rebuilt; each knows how the published files name its tensors."""
