"""What to say: a small language model learns from conversations without end which words answer which.
In: an agent, for its tokens
Out: the agent with another wording"""
