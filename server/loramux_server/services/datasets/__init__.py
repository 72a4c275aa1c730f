"""The rows of a job: read, checked and tokenised, with replay and frozen stacks."""
