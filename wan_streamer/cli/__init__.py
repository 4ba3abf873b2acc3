"""The command line: one module for each group of commands, `options` for what they share, `app` for the entry point.
In: arguments
Out: calls of the library; errors of the user become one line and exit code 2"""
