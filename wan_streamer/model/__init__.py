"""The one causal Transformer, its token layout, its key-value cache and its checkpoints.
In: features of the user, latents of the agent, text tokens
Out: text logits and velocities; for training over a clip, for a session block by block"""
