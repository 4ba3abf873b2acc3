"""What the agent says, and how: small causal networks beside the Transformer, with explicit state.
In: the words of both sides, the agent's own voice so far
Out: which word may come next; sounds of speech, four in a unit, and a first guess of the latents of its voice"""
