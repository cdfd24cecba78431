"""This Windows machine as its own test machine, for hosted CI runners whose images have testsigning on."""
