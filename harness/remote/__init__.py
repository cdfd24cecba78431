"""The guest as the harness talks to it: commands over WinRM, files over SFTP."""
