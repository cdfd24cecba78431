"""The inbox commands of the guest: a cmd.exe-like interpreter and one module per tool, all in this process.

Text from the wire never reaches a shell of the host.
"""
