"""The cost of each plan: ``python -m lightning_pelt.benchmark``.

Step times are reported as ratios, since milliseconds depend on the machine. One baseline is the
*frozen floor*: the same model, frozen, with a trained head and with embeddings whose output
requires a gradient. Every method that trains weights in the first block pays at least this cost.
The other baseline is full fine-tuning. Memory is the peak above the idle model.

Each plan runs in a separate process, so that no plan uses the heap, the caches or the lazy imports
of another. All processes exist at the same time and run one after another, in a new random order in
each round, so that other load on the machine affects all plans equally. Ratios compare measurements
of the same round. A measurement during which other processes used more than 0.15 core is left out,
and the report counts it.
"""
