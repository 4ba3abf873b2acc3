"""The reader, between ears and model: it learns to follow speech as it arrives.
In: a corpus of speech; an agent with ears and a reader
Out: the agent with another reader"""
