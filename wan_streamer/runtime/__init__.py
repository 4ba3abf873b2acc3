"""A loaded agent, its sessions, the clock, and the process that runs it; a recording can talk to it.
In: `UserUnit`s
Out: `AgentUnit`s, and figures of their latency"""
