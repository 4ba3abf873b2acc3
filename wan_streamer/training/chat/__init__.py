"""What the agent answers, about anything: a language model learns to answer as it does.
In: a chat model, and text conversations if there are some
Out: an adapter, for a persona"""
