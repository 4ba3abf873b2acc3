"""The floor: a small recurrent network learns from conversations when the agent speaks, listens and stops.
In: an agent with ears; conversations that they heard
Out: the agent with another floor"""
