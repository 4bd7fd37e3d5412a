"""Published attention modules, each in one short file of its own."""
