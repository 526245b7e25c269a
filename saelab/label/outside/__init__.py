"""Programs that saelab does not know as proposers: how one is run (`program`), what it is asked and answers."""
