"""The command line: one module a command, imported without torch or numpy."""
