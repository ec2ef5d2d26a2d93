"""Where the time of a cold boot goes, for each runtime, on machines with systemd."""
