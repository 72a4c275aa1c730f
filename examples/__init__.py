"""Why fine-tune: five uses, each with its data, one command and a measured table. See README.md."""
