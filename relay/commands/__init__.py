"""One module per command of the command line, imported when it is called: who serves needs no tables and no replay."""
