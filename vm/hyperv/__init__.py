"""Machines of Hyper-V, on this host or another one.

Everything on the host and, through PowerShell Direct, in a guest that is being prepared is done by the files in
`scripts/`; this package decides which, when, and what their answers mean. `standin/` is a stand-in for the Windows side.
"""
