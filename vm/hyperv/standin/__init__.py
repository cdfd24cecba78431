"""A stand-in for `powershell.exe` on a Hyper-V host: takes our scripts by file and parameters, and plays what they do.

    DOWNLINK_STANDIN=/some/directory python -m vm.hyperv.standin -File vm/hyperv/scripts/Get-Machines.ps1

Parameters are checked against the script's own `param` block. Machines, disks, switches and checkpoints live in the
directory from call to call; the guest of a machine is an emulated machine, so that WinRM and SFTP are real. It has faults
of its own (`faults.py`). It proves the Python side and the contract of the scripts, not the scripts' PowerShell.
"""
