"""Answers to held-out questions: gate, expected answers, comparison with a prompt."""
