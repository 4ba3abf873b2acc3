"""Thinker and performer: one agent whose solver works in another process, on another device or rank (paper section 4).
In: `UserUnit`s; over the links keys, values and noise
Out: `AgentUnit`s, those of one process; over the links latents"""
