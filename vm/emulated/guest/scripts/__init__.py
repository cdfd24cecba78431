"""Our own PowerShell files as the emulated guest runs them: one module per script.

The guest has no PowerShell. `powershell.exe -File C:\\...\\Get-GuestFacts.ps1 -Param value` finds the emulation of the
script by the file's name, binds the words to the parameters that the `.ps1` in the guest declares, calls the emulation
and prints the one line of JSON of the contract in `vm/powershell/script.py`. A file that differs from the project's
script of that name is refused, so that an emulation never stands for something else.

To add one, write a module here with a function and its decorator; nothing has to be listed anywhere:

    from vm.emulated.guest.scripts.call import ScriptCall, ScriptRefusal, script

    @script("Get-GuestFacts")
    def get_guest_facts(call: ScriptCall) -> object:
        \"\"\"What Get-GuestFacts.ps1 answers.\"\"\"
        if call.switch("Full") and not call.text("Path"):
            raise ScriptRefusal("path-missing", "a path is needed for all facts")
        return {"computer": call.guest.settings.computer_name}

* The function gets a `ScriptCall`: typed parameters by their declared names (`text`, `number`, `switch`, `texts`), the
  guest (drive, registry, computer, processes, settings), `secret()` for the JSON object on standard input, and
  `run(line)` for an inbox command.
* What it returns is the "result" and must be what JSON can say; `ScriptRefusal(code, message)` is the "error".
* `tests/vm/guest` has `prompt`, whose `prompt(r"powershell -File C:\\Work\\X.ps1")` runs a script without a network.
"""
