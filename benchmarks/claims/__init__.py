"""``make claims``: what is said of QLoRA, measured on this machine, with a page that tells what was found.

A module for each claim: ``parameters``, ``weights`` (bytes of the base), ``memory`` (of training), ``quality`` (with
its ``tasks`` and the ``search`` for learning rates), ``perplexity`` (of NF4), ``arithmetic`` (of stacks), ``large``
(bases of 8 and 70 billion weights). ``workers`` is what needs torch, a process each; ``setting`` starts them and
servers. ``results`` keeps figures as they come, ``said`` puts them in words, ``page`` into tables.
"""
