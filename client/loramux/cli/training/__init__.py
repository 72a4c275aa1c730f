"""The commands of training: datasets, jobs, and files of other tools that become rows."""
