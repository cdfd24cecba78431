@echo off
rem Runs the project's tasks: inv test, inv check, inv --list. Makes .venv on first use.
setlocal
set "root=%~dp0"
if "%root:~-1%"=="\" set "root=%root:~0,-1%"
set "python=%root%\.venv\Scripts\python.exe"

if exist "%python%" (
    "%python%" -I "%root%\harness\bootstrap.py" --check && goto run
)
set "found="
for %%p in ("%DOWNLINK_PYTHON%" "py -3" "python3" "python") do (
    if not defined found if not "%%~p"=="" (
        %%~p -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1 && set "found=%%~p"
    )
)
if not defined found (
    echo error: Python 3.11 or newer was not found 1>&2
    echo hint: winget install Python.Python.3.13, or set DOWNLINK_PYTHON 1>&2
    exit /b 1
)
%found% -I "%root%\harness\bootstrap.py" || exit /b 1

:run
"%python%" -I -m harness --search-root "%root%" %*
exit /b %errorlevel%
