"""A checkpoint in any format of the family → one folder of sharded safetensors that the engine runs.

The way: `locate` finds the source, `sources` or `gguf` opens it as a `Checkpoint` of lazy tensors, `layouts`
rearranges it, `shards` writes it into the folder that `target` puts into place whole; `conversion` is the
order of these. Knows nothing of how the engine runs a model.
"""
