"""Engines as replicas of a Ray Serve deployment. ``ray`` is imported only when such a backend is started."""
