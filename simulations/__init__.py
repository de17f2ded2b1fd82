"""Running experiments on one workstation: command line, engines, methods as values, studies."""
