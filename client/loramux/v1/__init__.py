"""The wire API of loramux, generated from protos/loramux/v1 by tools/protos.py. The server imports it from here."""
