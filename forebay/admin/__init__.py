"""The admin API: what operators do, over HTTP, through the engine that the command line uses too."""
