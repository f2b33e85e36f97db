"""The standalone gateway process: command line, HTTP server, admin port. The suite itself is `tianji_mw`."""
