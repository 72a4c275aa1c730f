"""What is checked, filled in and estimated before a job is queued."""
