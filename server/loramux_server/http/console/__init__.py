"""The console: a page at ``/`` that shows in a browser what the other operations of the door can do.

``files`` serves it; ``static/README.md`` says how its modules are written.
"""
