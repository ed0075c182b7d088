"""The command lines; ``tools/`` and the installed entry points call them."""
