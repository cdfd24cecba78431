"""What user mode needs to talk to a minifilter: the fltlib binding, the wire protocol, files and processes.

It travels into the guest together with the suites, so it imports the standard library and itself, nothing else, and
runs unchanged on Windows and inside the emulated guest.
"""
