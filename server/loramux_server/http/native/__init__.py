"""The methods of ``loramux.v1`` over HTTP, in JSON: Connect's unary form, and plain HTTP for streams and files.

What is served follows from the descriptors; nothing here names a method.
"""
