"""What is measured, on this machine, in numbers that can be made again.

    serving.py       loramux beside its peers: same weights, prompts, threads, one table      make bench-serving
    scale.py         thousands of adapters: start-up, lists, Zipf traffic, cold loads        make bench-scale
    scale_sim.py     1 to 1,000 replicas, simulated with the server's own routing             make bench-scale-sim
    training.py      loramux's training beside TRL's: speed, memory, time to an accuracy      make bench-training
    coserve.py       what training and serving cost each other                               make bench-coserve
    claims/          what is said of QLoRA: parameters, memory, quality, stacks               make claims
    retrieval.py     prompt, retrieval and adapter on the facts of four tenants             make bench-retrieval
    stacking.py      tenants under styles that never saw them, by recipe and seed             make bench-stacking
    large_base.py    the memory of a base of 70 billion weights, planned and measured         make bench-70b
    load.py          load on one loramux server, at several levels of concurrency             make bench
    doors.py         HTTP beside gRPC, and connections that wait                              make bench-front
    overload.py      thousands of calls at once, over an engine that plays a script           make bench-overload
    front.py         what the front costs per token, over an engine that plays a script
    profile_step.py  where the time of a decode step goes

The parts of ``serving.py``: ``workloads`` (what is asked), ``systems`` (who is asked), ``worker`` (the process that
each system has to itself), ``material`` (bases and adapters), ``samples``, ``roofline`` and ``table`` (what is told),
``job`` (what crosses between the processes). Those of ``scale.py``: ``registry`` (what is registered), ``traffic``
(who is asked how often), ``scale_parts``, ``scrape`` and ``page_cache`` (how it is measured), ``seven_billion`` and
``bank_loads`` (adapters of a larger base), ``scale_table``. Those of ``scale_sim.py``: ``scale_model`` (the
simulation) and ``scale_validation`` (real replicas beside it). ``random_base`` writes bases of any size. Those of
``training.py`` and ``coserve.py``: ``train_job`` (what crosses between the processes), ``trainers`` (who trains),
``streams``, ``stretches``, ``training_table``; those of ``stacking.py``: ``stacking_recipes`` and ``stacking_table``;
``goals`` says what figures must reach. Results go to ``benchmarks/results/``.
"""
