"""One execution of a suite: its directory, its journal, what runs it and what it leaves behind."""
