# What PSScriptAnalyzer looks at in this project's PowerShell files (`./inv ci.scripts`).
@{
    Severity     = @('Error', 'Warning')
    ExcludeRules = @(
        # Scripts change the state of machines because they are told to; nobody is there to be asked.
        'PSUseShouldProcessForStateChangingFunctions'
        # Names of lists read better in the plural.
        'PSUseSingularNouns'
    )
    Rules        = @{
        PSUseCompatibleSyntax = @{
            Enable         = $true
            TargetVersions = @('5.1')
        }
    }
}
