"""The inbox tools in another display language: labels and sentences change, numbers, names and exit codes do not.

German stands for all of them: whoever reads labels instead of numbers, exit codes and property names fails with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

GERMAN: Mapping[str, str] = {
    # Words that many tools begin with
    "SUCCESS:": "ERFOLGREICH:",
    "ERROR:": "FEHLER:",
    "WARNING:": "WARNUNG:",
    "INFO:": "INFORMATION:",
    "The operation completed successfully.": "Der Vorgang wurde erfolgreich beendet.",
    "The command completed successfully.": "Der Befehl wurde erfolgreich ausgeführt.",
    "The system cannot find the file specified.": "Das System kann die angegebene Datei nicht finden.",
    "The system cannot find the path specified.": "Das System kann den angegebenen Pfad nicht finden.",
    "Access is denied.": "Zugriff verweigert",
    "The parameter is incorrect.": "Falscher Parameter.",
    # schtasks
    "HostName:": "Hostname:",
    "TaskName:": "Aufgabenname:",
    "TaskName": "Aufgabenname",
    "Next Run Time": "Nächste Laufzeit",
    "Logon Mode:": "Anmeldemodus:",
    "Last Run Time:": "Letzte Laufzeit:",
    "Last Result:": "Letztes Ergebnis:",
    "Author:": "Autor:",
    "Task To Run:": "Auszuführende Aufgabe:",
    "Start In:": "Starten in:",
    "Comment:": "Kommentar:",
    "Scheduled Task State:": "Status der geplanten Aufgabe:",
    "Idle Time:": "Leerlaufzeit:",
    "Power Management:": "Energieverwaltung:",
    "Run As User:": "Als Benutzer ausführen:",
    "Schedule Type:": "Zeitplantyp:",
    "Folder:": "Ordner:",
    "Interactive/Background": "Interaktiv/Hintergrund",
    "Running": "Wird ausgeführt",
    "Ready": "Bereit",
    "Enabled": "Aktiviert",
    "Disabled": "Deaktiviert",
    "On demand only": "Nur bei Bedarf",
    "The scheduled task": "Die geplante Aufgabe",
    "has successfully been created.": "wurde erfolgreich erstellt.",
    "was successfully deleted.": "wurde erfolgreich gelöscht.",
    "Attempted to run": "Es wurde versucht, auszuführen:",
    # sc
    "STATE  ": "STATUS ",
    "TYPE  ": "TYP   ",
    "SERVICE_EXIT_CODE": "DIENST_BEENDIGUNGSCODE",
    "WIN32_EXIT_CODE": "WIN32_BEENDIGUNGSCODE",
    "CHECKPOINT": "PRÜFPUNKT",
    "WAIT_HINT": "WARTEHINWEIS",
    "FAILED": "FEHLER",
    "SUCCESS": "ERFOLG",
    # fltmc
    "Filter Name": "Filtername",
    "Num Instances": "Anzahl Instanzen",
    "Altitude": "Höhe",
    "Volume Name": "Volumename",
    "Instance Name": "Instanzname",
    "failed with error:": "fehlgeschlagen. Fehler:",
    # wevtutil /f:text
    "Log Name:": "Protokollname:",
    "Source:": "Quelle:",
    "Date:": "Datum:",
    "Event ID:": "Ereignis-ID:",
    "Level:": "Ebene:",
    "Description:": "Beschreibung:",
    # verifier
    "Verifier Flags:": "Überprüfungsflags:",
    "Standard Flags:": "Standardflags:",
    "Additional Flags:": "Zusätzliche Flags:",
    "Verified Drivers:": "Überprüfte Treiber:",
    "Verified drivers:": "Überprüfte Treiber:",
    "No drivers are currently verified.": "Zurzeit werden keine Treiber überprüft.",
    "No settings were changed.": "Es wurden keine Einstellungen geändert.",
    "The system must be restarted for the changes to take effect.": "Das System muss neu gestartet werden, damit "
    "die Änderungen wirksam werden.",
    "Boot Mode:": "Startmodus:",
    "None": "Keine",
    # w32tm
    "Leap Indicator:": "Sprungindikator:",
    "Last Successful Sync Time:": "Letzte erfolgr. Synchronisierungszeit:",
    "Poll Interval:": "Abrufintervall:",
    "Sending resync command to local computer": "Der Befehl zum erneuten Synchronisieren wird an den lokalen "
    "Computer gesendet.",
    "The computer did not resync because the required time change was too big.": "Der Computer wurde nicht "
    "synchronisiert, da die erforderliche Zeitänderung zu groß war.",
    # bcdedit
    "Windows Boot Loader": "Windows-Startladeprogramm",
    "identifier": "Bezeichner",
    "description": "Beschreibung",
    # systeminfo, tasklist
    "Host Name": "Hostname",
    "OS Name": "Betriebssystemname",
    "OS Version": "Betriebssystemversion",
    "System Boot Time": "Systemstartzeit",
    "Image Name": "Abbildname",
    "Mem Usage": "Speichernutzung",
    # certutil
    "Serial Number:": "Seriennummer:",
    "Issuer:": "Aussteller:",
    "Subject:": "Antragsteller:",
    "command completed successfully.": "-Befehl wurde erfolgreich ausgeführt.",
    "command FAILED:": "-Befehl ist FEHLGESCHLAGEN:",
    "already in store.": "bereits im Speicher.",
    "added to store.": "zum Speicher hinzugefügt.",
}
_TABLES: Mapping[str, Mapping[str, str]] = {"de": GERMAN}

LOCALISED = frozenset(
    f"{name}.exe"
    for name in [
        "bcdedit",
        "certutil",
        "fltmc",
        "pnputil",
        "sc",
        "schtasks",
        "shutdown",
        "systeminfo",
        "taskkill",
        "tasklist",
        "verifier",
        "w32tm",
        "wevtutil",
    ]
)
"""Programs that speak the display language; JSON, XML and scripts never do."""


def translated(text: str, language: str) -> str:
    """The text with every known phrase in the language; a language without a table changes nothing."""
    table = _TABLES.get(language)
    if table is None or text.lstrip().startswith("<"):
        return text
    return _pattern(language).sub(lambda found: table[found[0]], text)


@cache
def _pattern(language: str) -> re.Pattern[str]:
    phrases = sorted(_TABLES[language], key=len, reverse=True)
    edges = [
        (r"(?<!\w)" if phrase[0].isalnum() else "")
        + re.escape(phrase)
        + (r"(?!\w)" if phrase[-1].isalnum() else "")
        for phrase in phrases
    ]
    return re.compile("|".join(edges))
