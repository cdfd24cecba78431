"""Any Windows host that answers WinRM and is not ours: no checkpoint, no restart unasked, no destroying."""
