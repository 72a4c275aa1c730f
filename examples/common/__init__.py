"""What the examples share: their command line and server, questions, figures, reports and pictures."""
