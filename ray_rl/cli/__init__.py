"""The command line: one thin function per command. Loads without torch."""
