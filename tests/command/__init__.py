"""The command, as a user runs it, and its parts."""
