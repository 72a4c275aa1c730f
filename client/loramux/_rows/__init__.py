"""Rows of training data as people have them: files of tables and JSON, rows of other tools."""
