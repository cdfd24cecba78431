"""WinRM as the guest speaks it: WS-Management's remote shell over HTTP with Basic or sealed NTLM."""
