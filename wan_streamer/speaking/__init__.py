"""How the agent says its words: small causal networks beside the Transformer, with explicit state.
In: the words that it has written, its own voice so far
Out: sounds of speech, four in a unit, and a first guess of the latents of its voice"""
