"""Who may reach the server, and how much of it: names, tokens, TLS, limits, the line.
In: connections and requests of anybody
Out: requests that the application may work on, or a refusal"""
