"""PowerShell as files: every operation is one `.ps1` with typed parameters and one JSON object as its answer.

Python never composes script text. It names a file and gives values; `declaration` reads what the file takes, so that a
wrong name or type is refused before anything is sent, and so that stand-ins answer exactly the scripts that exist.
"""
