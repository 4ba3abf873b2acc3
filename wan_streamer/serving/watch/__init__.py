"""What an operator sees of a server.
In: what becomes of offers, calls and units
Out: numbers for Prometheus, of all callers together"""
