"""Checks: what is refused before anything is traced: options when a function is built, arguments when it is called."""
